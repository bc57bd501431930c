//! A web server of the host with one file, for guests to fetch from 10.0.2.2.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

/// The server; it serves until the test's process ends.
#[derive(Debug)]
pub struct Server {
    port: u16,
}

impl Server {
    /// Serves this content under every path, on a free port of 127.0.0.1.
    pub fn start(content: Vec<u8>) -> Self {
        let listener = crate::io(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let port = crate::io(listener.local_addr()).port();
        let content = Arc::new(content);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let content = Arc::clone(&content);
                // A guest that goes away in the middle is part of the tests.
                std::thread::spawn(move || drop(answer(stream, &content)));
            }
        });
        Self { port }
    }

    /// The address as a guest on QEMU's user network sees it.
    pub fn url(&self) -> String {
        format!("http://10.0.2.2:{}/file", self.port)
    }
}

fn answer(mut stream: TcpStream, content: &[u8]) -> std::io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", content.len())?;
    stream.write_all(content)?;
    stream.flush()
}
