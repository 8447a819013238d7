//! A plain HTTP server of what was put on it, by path or by whole address, as a CA's web server and as a proxy. It counts
//! connections, also those on which nothing is asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::runtime::Runtime;

#[derive(Debug, Default)]
struct Book {
    pages: HashMap<String, Bytes>,
    redirects: HashMap<String, String>,
    asked: Vec<String>,
    connections: usize,
}

/// The server; it ends when it is dropped.
#[derive(Debug)]
pub struct Shelf {
    address: SocketAddr,
    book: Arc<Mutex<Book>>,
    _runtime: Runtime,
}

impl Shelf {
    /// Starts it on 127.0.0.1.
    #[must_use]
    pub fn start() -> Self {
        Self::at("127.0.0.1:0")
    }

    /// Starts it at an address.
    ///
    /// # Panics
    /// When it cannot listen.
    #[must_use]
    pub fn at(address: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind(address))
            .expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let book: Arc<Mutex<Book>> = Arc::default();
        let written = Arc::clone(&book);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                lock(&written).connections += 1;
                let book = Arc::clone(&written);
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&book), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            book,
            _runtime: runtime,
        }
    }

    /// Its URL, with a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Puts a page there: a path, or a whole address for whoever takes this for a proxy. What is asked below it gets it too.
    pub fn put(&self, place: &str, page: impl Into<Bytes>) {
        lock(&self.book).pages.insert(place.to_owned(), page.into());
    }

    /// Sends whoever asks for a path elsewhere.
    pub fn redirect(&self, place: &str, to: &str) {
        lock(&self.book)
            .redirects
            .insert(place.to_owned(), to.to_owned());
    }

    /// What was asked for, as it was asked.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        lock(&self.book).asked.clone()
    }

    /// How many connections came.
    #[must_use]
    pub fn connections(&self) -> usize {
        lock(&self.book).connections
    }
}

fn lock(book: &Mutex<Book>) -> std::sync::MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(
    book: Arc<Mutex<Book>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let place = request.uri().to_string();
    let _ = request.into_body().collect().await;
    let mut book = lock(&book);
    book.asked.push(place.clone());
    let mut response = Response::new(Full::default());
    if let Some(to) = book.redirects.get(&place) {
        *response.status_mut() = hyper::StatusCode::FOUND;
        if let Ok(to) = to.parse() {
            response.headers_mut().insert("location", to);
        }
        return Ok(response);
    }
    let page = book
        .pages
        .iter()
        .filter(|(at, _)| place.starts_with(at.as_str()))
        .max_by_key(|(at, _)| at.len());
    match page {
        Some((_, page)) => *response.body_mut() = Full::new(page.clone()),
        None => *response.status_mut() = hyper::StatusCode::NOT_FOUND,
    }
    Ok(response)
}
