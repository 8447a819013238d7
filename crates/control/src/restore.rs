//! Restore.

use std::path::Path;

/// The file in the state folder that keeps the generation of the regions' feeds, once a restore has raised it.
pub const GENERATION: &str = "generation";

/// The generation that the state folder keeps; 1 where no restore has raised it.
///
/// # Errors
/// A file that cannot be read, or is no number: guessing a lower one would leave edges on a history that is no more.
pub fn generation(state: &Path) -> std::io::Result<u64> {
    match std::fs::read_to_string(state.join(GENERATION)) {
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|_| std::io::Error::new(std::io::ErrorKind::InvalidData, "it is not a number")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(1),
        Err(error) => Err(error),
    }
}
