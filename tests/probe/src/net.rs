//! TCP against the server of the standard measurements (in this repository: `tests/peer`).
//!
//! A request is 9 bytes: a letter and a count, little-endian. `T`: the client sends that many bytes and gets one
//! back. `R`: the server sends that many. `L`: that many single bytes go there and back.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::Result;
use crate::clock::now;
use crate::figure::{Spread, print};

const CHUNK: usize = 65536;
const CONNECT: Duration = Duration::from_secs(5);
/// A server that says nothing for so long is not there any more.
const SILENCE: Duration = Duration::from_secs(60);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Single bytes there and back.
    RoundTrips,
    /// Bytes out of the guest.
    Transmit,
    /// Bytes into the guest.
    Receive,
}

impl Mode {
    /// By the word of the command line.
    pub fn new(word: &str) -> Result<Self> {
        match word {
            "rr" => Ok(Self::RoundTrips),
            "tx" => Ok(Self::Transmit),
            "rx" => Ok(Self::Receive),
            _ => Err(format!("`{word}` is none of rr, tx, rx").into()),
        }
    }

    fn request(self, count: u64) -> [u8; 9] {
        let letter = match self {
            Self::RoundTrips => b'L',
            Self::Transmit => b'T',
            Self::Receive => b'R',
        };
        let mut request = [letter; 9];
        request[1..].copy_from_slice(&count.to_le_bytes());
        request
    }
}

/// Measures one mode.
pub fn measure(server: &str, mode: Mode, count: u64) -> Result<()> {
    let address: SocketAddr = server.parse().map_err(|error| format!("{server}: {error}"))?;
    let mut stream =
        TcpStream::connect_timeout(&address, CONNECT).map_err(|error| format!("{server}: {error}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let before = now();
    stream.write_all(&mode.request(count))?;
    match mode {
        Mode::RoundTrips => {
            let mut each = round_trips(&mut stream, count)?;
            let total = now() - before;
            let spread = Spread::of(&mut each);
            let mean = total / count.max(1);
            let values = [("mean-ns", mean), ("median-ns", spread.median), ("p99-ns", spread.p99)];
            print("tcp-rr", &[&[("n", count), ("min-ns", spread.min)], &values[..]].concat());
        }
        Mode::Transmit => {
            transmit(&mut stream, count)?;
            print("tcp-tx", &[("bytes", count), ("total-ns", now() - before)]);
        }
        Mode::Receive => {
            receive(&mut stream, count)?;
            print("tcp-rx", &[("bytes", count), ("total-ns", now() - before)]);
        }
    }
    Ok(())
}

fn round_trips(stream: &mut (impl Read + Write), count: u64) -> Result<Vec<u64>> {
    let mut byte = [0];
    let mut times = Vec::with_capacity(usize::try_from(count)?);
    for _ in 0..count {
        let before = now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        times.push(now() - before);
    }
    Ok(times)
}

fn transmit(stream: &mut (impl Read + Write), mut left: u64) -> Result<()> {
    let chunk = vec![0; CHUNK];
    while left > 0 {
        let len = left.min(CHUNK as u64);
        stream.write_all(chunk.get(..len as usize).unwrap_or(&chunk))?;
        left -= len;
    }
    stream.read_exact(&mut [0])?;
    Ok(())
}

fn receive(stream: &mut impl Read, mut left: u64) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    while left > 0 {
        let len = left.min(CHUNK as u64) as usize;
        let count = stream.read(chunk.get_mut(..len).unwrap_or(&mut []))?;
        if count == 0 {
            return Err(format!("the server closed with {left} bytes to come").into());
        }
        left -= count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread::spawn;

    /// Serves one connection, as `tests/peer` does.
    fn serve(listener: &TcpListener) {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 9];
        stream.read_exact(&mut request).unwrap();
        let count = u64::from_le_bytes(request[1..].try_into().unwrap()) as usize;
        let mut bytes = vec![0; count];
        match request[0] {
            b'T' => {
                stream.read_exact(&mut bytes).unwrap();
                stream.write_all(b"k").unwrap();
            }
            b'R' => stream.write_all(&bytes).unwrap(),
            b'L' => {
                for _ in 0..count {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    stream.write_all(&byte).unwrap();
                }
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn all_modes_end_with_a_server_that_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let thread = spawn(move || (0..3).for_each(|_| serve(&listener)));
        measure(&server, Mode::RoundTrips, 10).unwrap();
        measure(&server, Mode::Transmit, 100_000).unwrap();
        measure(&server, Mode::Receive, 100_000).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_server_that_closes_early_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let thread = spawn(move || drop(listener.accept().unwrap()));
        assert!(measure(&server, Mode::Receive, 100_000).is_err());
        thread.join().unwrap();
        assert!(measure("nowhere", Mode::Receive, 1).is_err());
        assert!(Mode::new("udp").is_err());
    }
}
