//! One TCP connection to the server.
//!
//! A request is nine bytes: what to do, and how many bytes of it (little endian). `T` takes n bytes and answers
//! `k`, `R` gives n bytes of any content, `L` echoes n bytes one for one. Requests follow each other until the
//! client closes; anything else ends the connection.

use smoltcp::socket::tcp::{Socket, State};

/// Bytes of a request.
const REQUEST: usize = 9;
/// Bytes echoed in one step.
const ECHO: usize = 64;

/// What a connection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// A request is on its way.
    Request,
    /// So many bytes are still to be taken.
    Take(u64),
    /// All were taken, and the client is to be told.
    Confirm,
    /// So many bytes are still to be given.
    Give(u64),
    /// So many bytes are still to be echoed.
    Echo(u64),
}

/// The server's side of one connection.
#[derive(Debug)]
pub struct Session {
    work: Work,
    request: [u8; REQUEST],
    /// Bytes of the request that are there.
    filled: usize,
    /// Bytes of the request that is carried out.
    count: u64,
    /// Bytes of any content that were queued last, one after the other.
    filler: u64,
}

impl Default for Session {
    fn default() -> Self {
        Self { work: Work::Request, request: [0; REQUEST], filled: 0, count: 0, filler: 0 }
    }
}

/// The smaller of a buffer's length and what is left.
fn part(len: usize, left: u64) -> usize {
    usize::try_from(left).map_or(len, |left| left.min(len))
}

impl Session {
    /// Does what can be done now; the socket is connected.
    pub fn advance(&mut self, socket: &mut Socket<'_>) {
        while self.step(socket) {}
        if socket.state() == State::CloseWait && self.needs_input() && !socket.can_recv() {
            socket.close();
        }
    }

    /// Whether the next `len` bytes of the client are thrown away, whatever they are.
    pub fn discards(&self, len: usize) -> bool {
        matches!(self.work, Work::Take(left) if left >= len as u64)
    }

    /// Whether the client is in the middle of sending a lot: it has sent `margin` bytes and has as many left, so it
    /// goes on without an answer to each segment.
    pub fn is_in_full_flow(&self, margin: u64) -> bool {
        matches!(self.work, Work::Take(left) if left >= margin && self.count - left >= margin)
    }

    /// Whether everything that is on its way to the client may have any content.
    pub fn sends_filler(&self, socket: &Socket<'_>) -> bool {
        socket.send_queue() as u64 <= self.filler
    }

    /// Whether the client has to send something first.
    fn needs_input(&self) -> bool {
        matches!(self.work, Work::Request | Work::Take(1..) | Work::Echo(1..))
    }

    /// One step; `false`: nothing can be done.
    fn step(&mut self, socket: &mut Socket<'_>) -> bool {
        match self.work {
            Work::Request => {
                let free = self.request.get_mut(self.filled..).unwrap_or_default();
                self.filled += socket.recv_slice(free).unwrap_or(0);
                if self.filled < REQUEST {
                    return false;
                }
                self.filled = 0;
                let [operation, count @ ..] = self.request;
                let count = u64::from_le_bytes(count);
                self.count = count;
                self.work = match operation {
                    b'T' => Work::Take(count),
                    b'R' => Work::Give(count),
                    b'L' => Work::Echo(count),
                    _ => {
                        socket.abort();
                        return false;
                    }
                };
                true
            }
            Work::Take(0) => self.next(Work::Confirm),
            _ if !socket.can_recv() && self.needs_input() => false,
            Work::Take(left) => {
                let taken = socket.recv(|bytes| (part(bytes.len(), left), part(bytes.len(), left)));
                let taken = taken.unwrap_or(0);
                self.work = Work::Take(left.saturating_sub(taken as u64));
                taken > 0
            }
            Work::Confirm => {
                self.filler = 0;
                let is_sent = socket.send_slice(b"k") == Ok(1);
                is_sent && self.next(Work::Request)
            }
            Work::Give(0) | Work::Echo(0) => self.next(Work::Request),
            Work::Give(left) => {
                // Whatever the buffer holds is as good as anything else.
                let given = socket.send(|bytes| (part(bytes.len(), left), part(bytes.len(), left)));
                let given = given.unwrap_or(0);
                self.filler = self.filler.saturating_add(given as u64);
                self.work = Work::Give(left.saturating_sub(given as u64));
                given > 0
            }
            Work::Echo(left) => {
                let mut buffer = [0; ECHO];
                let room = socket.send_capacity().saturating_sub(socket.send_queue());
                let most = part(ECHO.min(room), left);
                let received = socket.recv(|bytes| {
                    let len = most.min(bytes.len());
                    if let (Some(to), Some(from)) = (buffer.get_mut(..len), bytes.get(..len)) {
                        to.copy_from_slice(from);
                    }
                    (len, len)
                });
                let echoed = received.unwrap_or(0);
                self.filler = 0;
                // There is room for them; a connection that the client broke off answers nothing.
                let _sent = socket.send_slice(buffer.get(..echoed).unwrap_or_default());
                self.work = Work::Echo(left.saturating_sub(echoed as u64));
                echoed > 0
            }
        }
    }

    fn next(&mut self, work: Work) -> bool {
        self.work = work;
        true
    }
}
