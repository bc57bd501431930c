//! What both modes share, and the choice between them.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use proto::console::{OperatorRequest, OperatorResponse, Order};
use proto::text::Text;

use crate::escape;
use crate::guests::{CHUNK, Guests, SCROLLBACK};
use crate::interactive::Interactive;
use crate::mux::Mux;
use crate::text_ring::TextRing;

/// Bytes that may wait for the line.
pub const OUTPUT_MAX: usize = 16 * 1024;
/// Bytes of these that guests and the log leave to the operator's prompt and to answers.
pub const RESERVE: usize = 6 * 1024;
/// Bytes of the log of all domains.
pub const LOG_MAX: usize = 64 * 1024;
/// Commands that may wait for the toolstack.
pub const COMMANDS_MAX: usize = 16;
/// The domain whose records are shown while the machine boots.
const BOOT_DOMAIN: &str = "init";
/// Level of information in [`proto::console::LogRecord`].
const INFO: u8 = 3;

/// How the line is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A person at a terminal.
    Interactive,
    /// A program; lines with a tag each.
    Mux,
}

impl Mode {
    /// Reads the option `mode`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "interactive" => Some(Self::Interactive),
            "mux" => Some(Self::Mux),
            _ => None,
        }
    }
}

/// A record of a domain's log.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The domain's name.
    pub domain: &'a str,
    /// 1 error to 5 trace.
    pub level: u8,
    /// Microseconds since the start of the machine.
    pub time_us: u64,
    /// Records lost before this one.
    pub lost: u32,
    /// One line of text, as a domain wrote it.
    pub text: &'a str,
}

impl Record<'_> {
    /// The line of `xl dmesg`, with its end.
    fn line(&self) -> String {
        let (seconds, micros) = (self.time_us / 1_000_000, self.time_us % 1_000_000);
        let domain = escape::escape_word(self.domain);
        let text = one_line(self.text);
        let mut line = String::new();
        if self.lost > 0 {
            let lost = self.lost;
            line = alloc::format!("[{seconds:>5}.{micros:06}] {domain}: ({lost} records lost)\n");
        }
        line + &alloc::format!("[{seconds:>5}.{micros:06}] {domain}: {text}\n")
    }

    /// Whether a person who watches the machine boot sees it.
    pub(crate) fn is_for_boot(&self) -> bool {
        self.domain == BOOT_DOMAIN && self.level <= INFO
    }
}

/// Text without line ends and other control characters.
pub(crate) fn one_line(text: &str) -> String {
    escape::for_terminal(text).replace("\r\n", " ")
}

/// What both modes work on.
#[derive(Debug)]
pub(crate) struct Shared {
    output: VecDeque<u8>,
    pub guests: Guests,
    pub log: TextRing,
    pub commands: VecDeque<OperatorRequest>,
    pub has_operator: bool,
}

impl Shared {
    /// Bytes that the line's queue still takes.
    pub fn room(&self) -> usize {
        OUTPUT_MAX.saturating_sub(self.output.len())
    }

    /// Bytes that guests' output and long answers may take.
    pub fn bulk_room(&self) -> usize {
        self.room().saturating_sub(RESERVE)
    }

    /// Queues bytes for the line. Callers look at the room first; what does not fit is cut.
    pub fn write(&mut self, bytes: &[u8]) {
        let room = self.room();
        self.output.extend(bytes.iter().take(room));
    }

    /// Queues a command for the toolstack; it waits there until the toolstack is attached. `false`: too
    /// many wait.
    pub fn command(&mut self, id: u32, line: &str) -> bool {
        let has_room = self.commands.len() < COMMANDS_MAX;
        if has_room {
            self.commands.push_back(OperatorRequest { id, order: Order::Run(Text::truncated(line)) });
        }
        has_room
    }

    /// Ends a command: one that still waits is not sent at all. At most one order per command, so these need no
    /// bound of their own.
    pub fn stop(&mut self, id: u32) {
        let waiting = self.commands.len();
        self.commands.retain(|request| request.id != id);
        if self.commands.len() == waiting {
            self.commands.push_back(OperatorRequest { id, order: Order::Stop });
        }
    }
}

#[derive(Debug)]
enum Behaviour {
    Interactive(Interactive),
    Mux(Mux),
}

/// The console.
#[derive(Debug)]
pub struct Console {
    shared: Shared,
    behaviour: Behaviour,
}

/// Calls the same method of whichever mode it is.
macro_rules! dispatch {
    ($self:ident . $method:ident ( $($argument:expr),* )) => {
        match &mut $self.behaviour {
            Behaviour::Interactive(mode) => mode.$method(&mut $self.shared $(, $argument)*),
            Behaviour::Mux(mode) => mode.$method(&mut $self.shared $(, $argument)*),
        }
    };
}

impl Console {
    /// A console at the start of the machine.
    pub fn new(mode: Mode) -> Self {
        let shared = Shared {
            output: VecDeque::new(),
            guests: Guests::default(),
            log: TextRing::new(LOG_MAX),
            commands: VecDeque::new(),
            has_operator: false,
        };
        let behaviour = match mode {
            Mode::Interactive => Behaviour::Interactive(Interactive::new()),
            Mode::Mux => Behaviour::Mux(Mux::default()),
        };
        Self { shared, behaviour }
    }

    /// Whether a byte from the line can be taken.
    pub fn wants_input(&self) -> bool {
        // A key may redraw a whole line; a line from the host may be answered with an error.
        self.shared.room() >= RESERVE / 2 && self.shared.commands.len() < COMMANDS_MAX
    }

    /// A byte came from the line.
    pub fn input(&mut self, byte: u8) {
        dispatch!(self.input(byte));
    }

    /// Whether a record can be taken: a domain whose record must wait counts what it loses.
    pub fn wants_log(&self) -> bool {
        match &self.behaviour {
            Behaviour::Interactive(mode) => !mode.is_booting() || self.shared.bulk_room() > 0,
            Behaviour::Mux(_) => self.shared.bulk_room() > 0,
        }
    }

    /// A domain wrote to its log.
    pub fn log(&mut self, record: &Record<'_>) {
        self.shared.log.push(record.line().as_bytes());
        dispatch!(self.log(record));
    }

    /// A guest's console appears.
    pub fn attach_guest(&mut self, channel: u32, domid: u32, name: &str) {
        self.shared.guests.attach(channel, domid, name);
        dispatch!(self.guest_attached(channel));
    }

    /// A guest's console is gone; what it wrote before is still shown.
    pub fn detach_guest(&mut self, channel: u32) {
        if let Some(guest) = self.shared.guests.get_mut(channel) {
            guest.is_gone = true;
        }
        dispatch!(self.guest_detached(channel));
    }

    /// Whether a guest's next message of output can be taken: while it is shown, only as fast as the line
    /// takes it.
    pub fn wants_guest_output(&self, channel: u32) -> bool {
        let is_shown = match &self.behaviour {
            Behaviour::Interactive(mode) => mode.shows(channel),
            Behaviour::Mux(_) => true,
        };
        let Some(guest) = self.shared.guests.get(channel) else { return true };
        !is_shown || guest.unshown() + CHUNK <= SCROLLBACK
    }

    /// A guest wrote to its console.
    pub fn guest_output(&mut self, channel: u32, bytes: &[u8]) {
        if let Some(guest) = self.shared.guests.get_mut(channel) {
            guest.text.push(bytes);
        }
    }

    /// Channels of guests for which input waits.
    pub fn guests_with_input(&self) -> Vec<u32> {
        self.shared.guests.with_input().collect()
    }

    /// The next message of input for a guest, perhaps empty.
    pub fn guest_input(&self, channel: u32) -> Vec<u8> {
        self.shared.guests.input(channel)
    }

    /// That much of it was sent.
    pub fn guest_input_sent(&mut self, channel: u32, count: usize) {
        self.shared.guests.input_sent(channel, count);
    }

    /// The toolstack is there: commands go to it.
    pub fn attach_operator(&mut self) {
        self.shared.has_operator = true;
    }

    /// The toolstack is gone: commands that it had are ended, those that wait go on waiting.
    pub fn detach_operator(&mut self) {
        self.shared.has_operator = false;
        // What these would end has ended with it.
        self.shared.commands.retain(|request| request.order != Order::Stop);
        dispatch!(self.operator_detached());
    }

    /// The next command for the toolstack, once it is attached.
    pub fn command(&self) -> Option<&OperatorRequest> {
        self.shared.commands.front().filter(|_| self.shared.has_operator)
    }

    /// The command was sent.
    pub fn command_sent(&mut self) {
        self.shared.commands.pop_front();
    }

    /// Whether an answer of the toolstack can be taken.
    pub fn wants_response(&self) -> bool {
        let is_dumping = match &self.behaviour {
            Behaviour::Interactive(mode) => mode.is_dumping(),
            Behaviour::Mux(mode) => mode.is_dumping(),
        };
        !is_dumping && self.shared.room() >= RESERVE / 2
    }

    /// The toolstack answered.
    pub fn response(&mut self, response: &OperatorResponse) {
        dispatch!(self.response(response));
    }

    /// Moves what is to be shown into the line's queue, as far as there is room. Answers whether
    /// anything moved.
    pub fn pump(&mut self) -> bool {
        let before = self.shared.output.len();
        dispatch!(self.pump());
        self.shared.output.len() != before
    }

    /// Whether bytes wait for the line.
    pub fn has_output(&self) -> bool {
        !self.shared.output.is_empty()
    }

    /// Takes at most `max` bytes for the line.
    pub fn take_output(&mut self, max: usize) -> Vec<u8> {
        let count = max.min(self.shared.output.len());
        self.shared.output.drain(..count).collect()
    }
}
