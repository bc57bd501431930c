//! A web server of the host, for guests to fetch files from 10.0.2.2.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// The server; it serves until the test's process ends.
#[derive(Debug)]
pub struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

/// What it has.
enum Content {
    /// The same under every path.
    One(Vec<u8>),
    /// By path.
    Files(BTreeMap<String, Vec<u8>>),
}

impl Server {
    /// Serves this content under every path, on a free port of 127.0.0.1.
    pub fn start(content: Vec<u8>) -> Self {
        Self::serve(Content::One(content))
    }

    /// Serves these files, by their paths from `/` on; every other path does not exist.
    pub fn start_files(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self::serve(Content::Files(files))
    }

    fn serve(content: Content) -> Self {
        let listener = crate::io(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let port = crate::io(listener.local_addr()).port();
        let content = Arc::new(content);
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (content, log) = (Arc::clone(&content), Arc::clone(&log));
                // A guest that goes away in the middle is part of the tests.
                std::thread::spawn(move || drop(answer(stream, &content, &log)));
            }
        });
        Self { port, asked }
    }

    /// The server's address as a guest on QEMU's user network sees it.
    pub fn base(&self) -> String {
        format!("http://10.0.2.2:{}", self.port)
    }

    /// The paths that were asked for, in order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The one file's address as a guest on QEMU's user network sees it.
    pub fn url(&self) -> String {
        format!("{}/file", self.base())
    }
}

fn answer(mut stream: TcpStream, content: &Content, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    request.read_line(&mut first)?;
    let path = first.split_whitespace().nth(1).unwrap_or_default();
    log.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let file = match content {
        Content::One(file) => Some(file),
        Content::Files(files) => files.get(path),
    };
    let (status, file) = match file {
        Some(file) => ("200 OK", file.as_slice()),
        None => ("404 Not Found", &b""[..]),
    };
    write!(stream, "HTTP/1.0 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", file.len())?;
    stream.write_all(file)?;
    stream.flush()
}
