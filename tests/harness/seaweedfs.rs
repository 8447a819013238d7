//! A real S3-compatible object store.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::{ended, eventually, free_address, tail_of, tool};

const USER: &str = "tests:tests-secret";

/// A SeaweedFS server with its S3 gateway; it ends when it is dropped.
#[derive(Debug)]
pub struct SeaweedFs {
    child: Child,
    folder: TempDir,
    s3: SocketAddr,
}

impl SeaweedFs {
    /// Starts it with one bucket that everybody may read.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(bucket: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("chancery-store-")
            .tempdir()
            .expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let (user, secret) = USER.split_once(':').expect("a name and a secret");
        fs::write(
            folder.path().join("s3.json"),
            format!(
                r#"{{"identities":[{{"name":"owner","credentials":[{{"accessKey":"{user}","secretKey":"{secret}"}}],"actions":["Admin"]}},
                    {{"name":"anonymous","actions":["Read:{bucket}"]}}]}}"#
            ),
        )
        .expect("written");
        let s3 = free_address();
        let mut command = Command::new(tool("weed"));
        command
            .args([
                "server",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-filer",
                "-s3",
                "-s3.iam=false",
                "-s3.port.iceberg=0",
            ])
            .args([
                "-master.telemetry=false",
                "-volume.max=32",
                "-master.volumeSizeLimitMB=64",
            ])
            .arg(format!("-dir={}", folder.path().display()))
            .arg(format!("-s3.config={}", at("s3.json")))
            .arg(format!("-filer.localSocket={}", at("filer.sock")))
            .arg(format!("-s3.localSocket={}", at("s3.sock")))
            .arg(format!("-s3.port={}", s3.port()));
        let others = [
            "s3.port.grpc",
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "metricsPort",
        ];
        // All are held at once, so that no two get the same.
        let held: Vec<_> = others
            .iter()
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        for (name, listener) in others.iter().zip(&held) {
            command.arg(format!(
                "-{name}={}",
                listener.local_addr().expect("it is bound").port()
            ));
        }
        drop(held);
        let log = folder.path().join("log");
        let child = command
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("the folder can be written"))
            .spawn()
            .expect("weed runs");
        let mut store = Self { child, folder, s3 };
        eventually(
            "the object store takes a bucket",
            Duration::from_secs(60),
            || {
                if let Ok(Some(status)) = store.child.try_wait() {
                    panic!("the object store ended with {status}:\n{}", tail_of(&log));
                }
                store.s3(&["-X", "PUT"], &format!("/{bucket}"))
            },
        );
        store
    }

    /// Puts an object, as `/bucket/name`.
    ///
    /// # Panics
    /// When it is not taken.
    pub fn put(&self, path: &str, body: &[u8]) {
        let file = self.folder.path().join("upload");
        fs::write(&file, body).expect("written");
        let file = file.display().to_string();
        eventually(
            "the object store takes an object",
            Duration::from_secs(30),
            || self.s3(&["-T", &file], path),
        );
    }

    /// The URL of its S3 gateway.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.s3)
    }

    fn s3(&self, arguments: &[&str], path: &str) -> Result<(), String> {
        let output = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "10",
                "--noproxy",
                "*",
                "--output",
                "/dev/null",
            ])
            .args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", USER])
            .args(arguments)
            .arg(format!("{}{path}", self.url()))
            .output()
            .expect("curl is installed");
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        // Its data goes with its folder; an orderly shutdown would wait for half a minute.
        let _ = self.child.kill();
        let _ = ended(&mut self.child, Duration::from_secs(10));
    }
}
