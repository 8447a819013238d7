//! Names: from the place where a certificate stands, or from its first host, always the same from the same tree.

use std::path::Path;

use super::scan::Leaf;
use super::walk::{File, Layout};

/// The longest name.
pub const NAME_MAX: usize = 64;
/// Hex digits of a fingerprint that tell names apart.
pub const SUFFIX: usize = 8;

/// The name that a certificate's place suggests, as far as the certificate agrees; else its first host.
pub fn slug(leaf: &Leaf, file: &File, prefix: Option<&str>) -> String {
    let text = |path: Option<&Path>| {
        path.and_then(Path::file_name)
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let folder = text(file.shown.parent());
    let stem = stem(&file.shown);
    let label = leaf.label.clone().unwrap_or_default();
    let hint = match file.layout {
        // These are names that people have given.
        Layout::Certbot | Layout::AcmeSh if !folder.is_empty() => Some(folder),
        _ => [stem, folder, label].into_iter().find(|hint| {
            let host = star(hint);
            leaf.names.contains(&host)
        }),
    };
    let text = hint
        .map(|hint| star(&hint))
        .or_else(|| leaf.names.first().cloned())
        .unwrap_or_default();
    let slug = slugified(prefix, &text);
    if slug.is_empty() {
        format!("certificate-{}", &leaf.fingerprint.to_string()[..SUFFIX])
    } else {
        slug
    }
}

/// Caddy writes `wildcard_.example.com`, lego `_.example.com`.
fn star(hint: &str) -> String {
    let lower = hint.to_ascii_lowercase();
    for begin in ["wildcard_.", "wildcard.", "_.", "star.", "star_"] {
        if let Some(parent) = lower.strip_prefix(begin) {
            return format!("*.{parent}");
        }
    }
    lower
}

/// The file's name without what tools and people append to it.
pub fn stem(path: &Path) -> String {
    let mut name = path
        .file_name()
        .map(|name| name.to_string_lossy().to_ascii_lowercase())
        .unwrap_or_default();
    loop {
        let shorter = [
            ".pem",
            ".crt",
            ".cer",
            ".cert",
            ".key",
            ".der",
            ".txt",
            ".p12",
            ".pfx",
            ".json",
            ".issuer",
            ".chain",
            ".fullchain",
            ".bundle",
            ".privkey",
            "-chain",
            "-fullchain",
            "-key",
            "-cert",
            "-bundle",
            "_chain",
            "_fullchain",
            "_key",
            "_cert",
            "_bundle",
            ".combined",
        ]
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
        .filter(|shorter| !shorter.is_empty())
        .map(str::to_owned);
        match shorter {
            Some(shorter) => name = shorter,
            None => return name,
        }
    }
}

/// Names that say what a file is and not whose.
pub fn generic(stem: &str) -> bool {
    [
        "privkey", "private", "key", "server", "tls", "cert", "ssl", "domain", "site", "host",
    ]
    .contains(&stem)
}

pub fn slug_of_path(path: &Path, prefix: Option<&str>) -> String {
    let slug = slugified(prefix, &star(&stem(path)));
    if slug.is_empty() {
        "unnamed".to_owned()
    } else {
        slug
    }
}

/// Lower-case letters, digits and single hyphens, at most 64 of them; `*` is `wildcard`.
fn slugified(prefix: Option<&str>, text: &str) -> String {
    let text = text.replace('*', "wildcard").to_ascii_lowercase();
    let all = match prefix {
        Some(prefix) => format!("{}-{text}", prefix.to_ascii_lowercase()),
        None => text,
    };
    let mut slug = String::new();
    for c in all.chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
        if slug.len() >= NAME_MAX {
            break;
        }
    }
    slug.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_names_whatever_they_are_made_of() {
        for (text, slug) in [
            ("www.example.com", "www-example-com"),
            ("*.example.com", "wildcard-example-com"),
            ("xn--bcher-kva.example", "xn-bcher-kva-example"),
            ("My Site (old)", "my-site-old"),
            ("..", ""),
            ("_.-a-._", "a"),
        ] {
            assert_eq!(slugified(None, text), slug);
        }
        assert_eq!(slugified(Some("old"), "a.example"), "old-a-example");
        let long = format!("{}.example", "a-b".repeat(40));
        let slug = slugified(None, &long);
        assert!(slug.len() <= NAME_MAX && !slug.ends_with('-'), "{slug}");
        assert!(lifecycle::names::Slug::name(&slug).is_ok());
    }

    #[test]
    fn stems_are_what_the_files_of_one_certificate_share() {
        for name in [
            "a.example.crt",
            "a.example.key",
            "a.example.pem",
            "a.example.issuer.crt",
            "a.example.fullchain.pem",
            "a.example-chain.crt",
            "a.example_key.pem",
            "A.Example.CER",
            "a.example",
        ] {
            assert_eq!(stem(Path::new(name)), "a.example", "{name}");
        }
        assert_eq!(stem(Path::new(".pem")), ".pem");
        assert!(generic(&stem(Path::new("x/privkey.pem"))));
    }

    #[test]
    fn wildcards_are_known_however_a_tool_writes_them() {
        for hint in [
            "wildcard_.example.com",
            "_.example.com",
            "star.example.com",
            "*.example.com",
        ] {
            assert_eq!(star(hint), "*.example.com");
        }
        assert_eq!(star("starling.example.com"), "starling.example.com");
    }
}
