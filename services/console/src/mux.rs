//! The mode for a program: tagged lines in both directions.
//!
//! To the host: `@log DOMAIN LEVEL TEXT`, `@guest NAME CHUNK`, `@out ID CHUNK`, `@done ID STATUS`,
//! `@notice TEXT`, `@up DOMID FAILED`. From the host: `@exec ID COMMAND`, `@input NAME BYTES`. The last
//! field is escaped (`escape`); names are escaped as words. Lines are whole: a line is queued only when
//! all of it has room, so nothing of another tag gets into it.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use proto::console::OperatorResponse;

use crate::editor::LINE_MAX;
use crate::escape::{escape, escape_word, unescape};
use crate::guests::CHUNK;
use crate::state::{Record, Shared};

/// Longest line from the host: a message of input with every byte escaped, and its tag.
const HOST_LINE_MAX: usize = 4096;
/// Longest line with output of a guest or of the log.
const CHUNK_LINE: usize = CHUNK * 4 + 160;
/// Status of a command that did not run to its end.
const FAILED: u8 = 1;

/// State of the mode.
#[derive(Debug, Default)]
pub(crate) struct Mux {
    line: Vec<u8>,
    /// Bytes of the current line beyond [`HOST_LINE_MAX`].
    excess: usize,
    /// Commands without an end so far.
    open: BTreeSet<u32>,
    /// Command that gets the log, the position in it, and where it ended when it was asked for.
    dump: Option<(u32, u64, u64)>,
    /// Guest whose output was moved last: the next one comes first next time.
    last_guest: u32,
}

fn notice(shared: &mut Shared, text: &str) {
    shared.write(format!("@notice {}\n", escape(text.as_bytes())).as_bytes());
}

impl Mux {
    pub fn is_dumping(&self) -> bool {
        self.dump.is_some()
    }

    pub fn input(&mut self, shared: &mut Shared, byte: u8) {
        if byte != b'\n' {
            if self.line.len() < HOST_LINE_MAX {
                self.line.push(byte);
            } else {
                self.excess += 1;
            }
            return;
        }
        let line = core::mem::take(&mut self.line);
        let excess = core::mem::take(&mut self.excess);
        if excess > 0 {
            notice(shared, &format!("a line of {} bytes is too long", line.len() + excess));
            return;
        }
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if !line.is_empty() && self.host_line(shared, line).is_none() {
            let start = line.get(..60).unwrap_or(line);
            notice(shared, &format!("a line that is no request: {}", escape(start)));
        }
    }

    /// Acts on a line of the host; `None`: it is malformed.
    fn host_line(&mut self, shared: &mut Shared, line: &[u8]) -> Option<()> {
        let mut words = line.splitn(3, |&byte| byte == b' ');
        let (tag, name) = (words.next()?, words.next()?);
        let payload = unescape(words.next().unwrap_or_default())?;
        match tag {
            b"@exec" => {
                let id = core::str::from_utf8(name).ok()?.parse().ok()?;
                let command = String::from_utf8(payload).ok()?;
                self.exec(shared, id, &command);
            }
            b"@input" => {
                let name = String::from_utf8(unescape(name)?).ok()?;
                let Some(channel) = shared.guests.by_name(&name) else {
                    notice(shared, &format!("no guest has the name {name}"));
                    return Some(());
                };
                let dropped = shared.guests.type_in(channel, &payload);
                if dropped > 0 {
                    notice(shared, &format!("{name} does not read: {dropped} bytes of input dropped"));
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn exec(&mut self, shared: &mut Shared, id: u32, command: &str) {
        if self.open.contains(&id) {
            notice(shared, &format!("command {id} runs already"));
        } else if command.len() > LINE_MAX {
            Self::fail(shared, id, "the command is too long\n");
        } else if shared.command(id, command) {
            self.open.insert(id);
        } else {
            Self::fail(shared, id, "too many commands wait\n");
        }
    }

    fn fail(shared: &mut Shared, id: u32, why: &str) {
        let out = format!("@out {id} {}\n@done {id} {FAILED}\n", escape(why.as_bytes()));
        shared.write(out.as_bytes());
    }

    pub fn log(&mut self, shared: &mut Shared, record: &Record<'_>) {
        let domain = escape_word(record.domain);
        let mut out = String::new();
        if record.lost > 0 {
            out = format!("@log {domain} 2 ({} records lost)\n", record.lost);
        }
        let level = record.level.clamp(1, 5);
        out += &format!("@log {domain} {level} {}\n", escape(record.text.as_bytes()));
        shared.write(out.as_bytes());
    }

    pub fn guest_attached(&mut self, _shared: &mut Shared, _channel: u32) {}

    /// A guest without text to show is forgotten at once, the others by [`Self::pump`].
    pub fn guest_detached(&mut self, shared: &mut Shared, channel: u32) {
        if shared.guests.get(channel).is_some_and(|guest| guest.unshown() == 0) {
            shared.guests.remove(channel);
        }
    }

    pub fn operator_detached(&mut self, shared: &mut Shared) {
        self.dump = None;
        let waiting: BTreeSet<u32> = shared.commands.iter().map(|command| command.id).collect();
        let ended: Vec<u32> = self.open.difference(&waiting).copied().collect();
        for id in ended {
            self.open.remove(&id);
            Self::fail(shared, id, "the toolstack is gone; the command may not have ended\n");
        }
    }

    pub fn response(&mut self, shared: &mut Shared, response: &OperatorResponse) {
        match response {
            OperatorResponse::Output { id, text } if self.open.contains(id) => {
                shared.write(format!("@out {id} {}\n", escape(text.as_bytes())).as_bytes());
            }
            // Nobody could press the key that ends it.
            OperatorResponse::Page { id } if self.open.remove(id) => {
                shared.stop(*id);
                Self::fail(
                    shared,
                    *id,
                    "the command shows pages at a terminal; in scripts use its option -b\n",
                );
            }
            OperatorResponse::Done { id, status } => self.done(shared, *id, *status),
            OperatorResponse::Attach { id, domid } => match shared.guests.by_domid(*domid) {
                Some(_) => self.done(shared, *id, 0),
                None if self.open.remove(id) => {
                    Self::fail(shared, *id, &format!("domain {domid} has no console\n"));
                }
                None => {}
            },
            OperatorResponse::ShowLog { id } if self.open.contains(id) => {
                self.dump = Some((*id, shared.log.first_line(), shared.log.end()));
            }
            // Answers to a command that nobody gave.
            OperatorResponse::Output { .. }
            | OperatorResponse::Page { .. }
            | OperatorResponse::ShowLog { .. } => {}
            OperatorResponse::Notice { text } => notice(shared, text),
            OperatorResponse::GuestsStarted { first, failed } => {
                shared.write(format!("@up {first} {failed}\n").as_bytes());
            }
        }
    }

    fn done(&mut self, shared: &mut Shared, id: u32, status: u8) {
        if self.open.remove(&id) {
            shared.write(format!("@done {id} {status}\n").as_bytes());
        }
    }

    pub fn pump(&mut self, shared: &mut Shared) {
        while let Some((id, position, end)) = self.dump {
            if shared.bulk_room() < CHUNK_LINE {
                break;
            }
            let (text, next) = shared.log.read(position, CHUNK);
            if position >= end || text.is_empty() {
                self.dump = None;
                self.done(shared, id, 0);
                break;
            }
            shared.write(format!("@out {id} {}\n", escape(&text)).as_bytes());
            self.dump = Some((id, next, end));
        }
        loop {
            let round = shared.guests.channels_after(self.last_guest);
            let mut has_moved = false;
            for channel in round {
                if shared.bulk_room() < CHUNK_LINE {
                    return;
                }
                has_moved |= self.pump_guest(shared, channel);
            }
            if !has_moved {
                return;
            }
        }
    }

    /// Moves a line of a guest's output; `false`: there is none.
    fn pump_guest(&mut self, shared: &mut Shared, channel: u32) -> bool {
        let Some(guest) = shared.guests.get_mut(channel) else { return false };
        let (text, next) = guest.text.read(guest.shown, CHUNK);
        guest.shown = next;
        let name = escape_word(&guest.name);
        if guest.is_gone && guest.unshown() == 0 {
            shared.guests.remove(channel);
        }
        if text.is_empty() {
            return false;
        }
        self.last_guest = channel;
        shared.write(format!("@guest {name} {}\n", escape(&text)).as_bytes());
        true
    }
}
