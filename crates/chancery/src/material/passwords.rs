//! Where the password of a file comes from: a file that is named, or the person at the terminal. Never the command line, where
//! every process of the machine could read it.

use std::fs::OpenOptions;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use zeroize::Zeroizing;

use keyring::protected::MAX_PASSWORD;
use keyring::{Password, ProtectedError};

use crate::failure::{Failure, Result};
use crate::files;

/// How often it is asked for.
const TRIES: usize = 3;

/// Where passwords come from. One is used for all files of a command, and asked for once when it opens them all.
#[derive(Default)]
pub struct Passwords {
    file: Option<PathBuf>,
    last: Option<Password>,
    /// Whether nobody is asked.
    silent: bool,
}

impl Passwords {
    /// From this file, else from the terminal.
    pub fn new(file: Option<&Path>) -> Self {
        Self {
            file: file.map(Path::to_owned),
            last: None,
            silent: false,
        }
    }

    /// From nowhere: what needs a password stays closed, and nobody is asked. For work over many files.
    pub fn none() -> Self {
        Self {
            silent: true,
            ..Self::default()
        }
    }

    /// Opens something with the empty password, the last one, that of the file, or what the person at the terminal says.
    ///
    /// # Errors
    /// `key_encrypted` when there is no password or not the right one; what `open` says; that the file cannot be read.
    pub(super) fn unlock<T>(
        &mut self,
        name: &str,
        open: impl Fn(&Password) -> std::result::Result<T, ProtectedError>,
    ) -> Result<T> {
        match open(&super::empty()) {
            Err(ProtectedError::WrongPassword) => {}
            done => return done.map_err(|error| super::closed(&error, name)),
        }
        if let Some(last) = &self.last {
            match open(last) {
                Err(ProtectedError::WrongPassword) => {}
                done => return done.map_err(|error| super::closed(&error, name)),
            }
        }
        if let Some(path) = &self.file {
            let password = read_file(path)?;
            let opened = open(&password).map_err(|error| super::closed(&error, name))?;
            self.last = Some(password);
            return Ok(opened);
        }
        if self.silent {
            return Err(super::no_password(name));
        }
        for left in (0..TRIES).rev() {
            let Some(password) = ask(name)? else {
                return Err(super::no_password(name));
            };
            match open(&password) {
                Err(ProtectedError::WrongPassword) if left > 0 => {}
                done => {
                    let opened = done.map_err(|error| super::closed(&error, name))?;
                    self.last = Some(password);
                    return Ok(opened);
                }
            }
        }
        Err(super::no_password(name))
    }

    /// The password for a file that is written: that of the file, or what the person at the terminal says twice.
    ///
    /// # Errors
    /// `key_encrypted` without a terminal and a file; that both times differ.
    pub fn new_one(&mut self, name: &str) -> Result<Password> {
        if let Some(path) = &self.file {
            return read_file(path);
        }
        let mut asked = [
            ask_for(&format!("New password for {name}: "))?,
            ask_for("The same again: ")?,
        ];
        match (asked[0].take(), asked[1].take()) {
            (Some(first), Some(second)) if *first == *second => password(first),
            (Some(_), Some(_)) => Err(anyhow::anyhow!("both passwords differ").into()),
            _ => Err(super::no_password(name)),
        }
    }
}

fn password(text: Zeroizing<String>) -> Result<Password> {
    Password::new(text).map_err(|error| Failure::Usage(error.to_string()))
}

/// The first line of a file, without its line end.
fn read_file(path: &Path) -> Result<Password> {
    let bytes = files::read(path, 4 * MAX_PASSWORD as u64)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let line = bytes
        .split(|byte| matches!(byte, b'\n' | b'\r'))
        .next()
        .unwrap_or_default();
    let text = std::str::from_utf8(line)
        .map_err(|_| Failure::Usage(format!("{} is not text", path.display())))?;
    password(Zeroizing::new(text.to_owned()))
}

fn ask(name: &str) -> Result<Option<Password>> {
    ask_for(&format!("Password of {name}: "))?
        .map(password)
        .transpose()
}

/// Asks at the terminal, without showing what is typed. None: there is no person at one.
fn ask_for(prompt: &str) -> Result<Option<Zeroizing<String>>> {
    if !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let Ok(mut terminal) = OpenOptions::new().read(true).write(true).open("/dev/tty") else {
        return Ok(None);
    };
    let quiet = Quiet::new(&terminal)?;
    terminal
        .write_all(prompt.as_bytes())
        .context("asking for a password")?;
    // Its room is taken at once, so that growing leaves nothing behind in freed memory.
    let mut typed = Zeroizing::new(Vec::with_capacity(MAX_PASSWORD));
    let answer = loop {
        let mut byte = Zeroizing::new([0_u8]);
        let read = terminal
            .read(&mut *byte)
            .context("reading a password from the terminal")?;
        match byte[0] {
            _ if read == 0 => break None,
            b'\r' | b'\n' => break Some(()),
            // Ctrl-C, and Ctrl-D on an empty line: the terminal does not turn them into signals now.
            3 => break None,
            4 if typed.is_empty() => break None,
            // Backspace, and Ctrl-U for all of it.
            8 | 0x7f => while typed.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            0x15 => typed.clear(),
            _ if typed.len() == MAX_PASSWORD => {}
            byte => typed.push(byte),
        }
    };
    let _ = terminal.write_all(b"\r\n");
    drop(quiet);
    if answer.is_none() {
        return Err(anyhow::anyhow!("no password was given").into());
    }
    let text = std::str::from_utf8(&typed)
        .map_err(|_| Failure::Usage("the password is not text in UTF-8".to_owned()))?;
    Ok(Some(Zeroizing::new(text.to_owned())))
}

/// A terminal that shows nothing of what is typed, hands each key over at once, and is as it was when this is dropped.
struct Quiet {
    terminal: std::fs::File,
    before: Termios,
}

impl Quiet {
    fn new(terminal: &std::fs::File) -> Result<Self> {
        let terminal = terminal.try_clone().context("using the terminal")?;
        let before = tcgetattr(&terminal).context("using the terminal")?;
        let mut quiet = before.clone();
        quiet
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&terminal, OptionalActions::Flush, &quiet).context("using the terminal")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}
