//! The mode for a person: boot messages, then a guest's console or the operator's prompt.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use proto::console::OperatorResponse;

use crate::editor::{Edited, Editor};
use crate::escape::for_terminal;
use crate::replay::Replay;
use crate::state::{Record, Shared, one_line};

/// Ctrl+].
const LEAVE: u8 = 0x1d;
/// Ctrl-C.
const INTERRUPT: u8 = 0x03;
const BELL: u8 = 0x07;
const PROMPT: &str = "ailurus> ";
const HOW_TO_LEAVE: &str = "Ctrl+] for the operator's prompt, Ctrl-A x ends QEMU";
/// To the upper left corner, and nothing from there on.
const CLEAR: &[u8] = b"\x1b[H\x1b[J";
/// Notices that are kept while a guest's console is shown.
const NOTICES_MAX: usize = 32;

/// What the terminal shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Screen {
    /// Boot messages; what is typed is kept for the prompt.
    Boot,
    /// The operator's prompt, or a command's output.
    Prompt,
    /// A guest's console, by channel.
    Guest(u32),
}

/// State of the mode.
#[derive(Debug)]
pub(crate) struct Interactive {
    screen: Screen,
    editor: Editor,
    /// The command whose answers are awaited; no prompt meanwhile.
    running: Option<u32>,
    /// It shows pages, and any key ends it.
    has_pages: bool,
    last_id: u32,
    notices: VecDeque<String>,
    notices_lost: usize,
    is_booting: bool,
    /// Filter of the shown guest's old output, and where that ends.
    replay: Option<(Replay, u64)>,
    /// Guest to show as soon as its console appears.
    awaited: Option<u32>,
    /// Name of the guest that ended while it was shown, until a key is pressed: if it is started again,
    /// its console is shown again.
    ended: Option<String>,
    /// Position in the log that is being printed, and where it ended when it was asked for.
    dump: Option<(u64, u64)>,
}

impl Interactive {
    pub fn new() -> Self {
        Self {
            screen: Screen::Boot,
            editor: Editor::new(PROMPT),
            running: None,
            has_pages: false,
            last_id: 0,
            notices: VecDeque::new(),
            notices_lost: 0,
            is_booting: true,
            awaited: None,
            ended: None,
            dump: None,
            replay: None,
        }
    }

    pub fn is_booting(&self) -> bool {
        self.is_booting
    }

    pub fn is_dumping(&self) -> bool {
        self.dump.is_some()
    }

    pub fn shows(&self, channel: u32) -> bool {
        self.screen == Screen::Guest(channel)
    }

    fn is_idle(&self) -> bool {
        self.running.is_none() && self.editor.is_empty()
    }

    /// Prints a line that nobody asked for, above the prompt if there is one.
    fn announce(&self, shared: &mut Shared, line: &str) {
        let mut out = Vec::new();
        let has_prompt = self.screen == Screen::Prompt && self.running.is_none();
        if has_prompt {
            out.extend_from_slice(b"\r\x1b[K");
        }
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(b"\r\n");
        if has_prompt {
            self.editor.redraw(&mut out);
        }
        shared.write(&out);
    }

    fn notice(&mut self, shared: &mut Shared, line: String) {
        if !matches!(self.screen, Screen::Guest(_)) {
            self.announce(shared, &line);
            return;
        }
        if self.notices.len() >= NOTICES_MAX {
            self.notices.pop_front();
            self.notices_lost += 1;
        }
        self.notices.push_back(line);
    }

    /// Shows the prompt, with the notices that waited for it.
    fn open_prompt(&mut self, shared: &mut Shared) {
        self.screen = Screen::Prompt;
        let mut out = String::new();
        if self.notices_lost > 0 {
            out += &format!("({} older notices are not shown)\r\n", core::mem::take(&mut self.notices_lost));
        }
        for notice in self.notices.drain(..) {
            out += &notice;
            out += "\r\n";
        }
        let mut out = out.into_bytes();
        if self.running.is_none() {
            self.editor.redraw(&mut out);
        }
        shared.write(&out);
    }

    fn open_guest(&mut self, shared: &mut Shared, channel: u32) {
        let Some(guest) = shared.guests.get_mut(channel) else { return };
        guest.shown = guest.text.first_line();
        self.replay = Some((Replay::default(), guest.text.end()));
        let title = format!("\r\x1b[KConsole of {}: {HOW_TO_LEAVE}\r\n", one_line(&guest.name));
        self.screen = Screen::Guest(channel);
        self.awaited = None;
        self.ended = None;
        shared.write(title.as_bytes());
    }

    pub fn input(&mut self, shared: &mut Shared, byte: u8) {
        self.ended = None;
        match self.screen {
            Screen::Guest(_) if byte == LEAVE => {
                shared.write(b"\r\n");
                self.open_prompt(shared);
            }
            Screen::Guest(channel) => {
                if shared.guests.type_in(channel, &[byte]) > 0 {
                    shared.write(&[BELL]);
                }
            }
            Screen::Boot if byte == LEAVE => self.open_prompt(shared),
            Screen::Boot if matches!(byte, b'\r' | b'\n') => {
                self.open_prompt(shared);
                self.key(shared, byte);
            }
            // Typed ahead: shown with the prompt.
            Screen::Boot => {
                self.editor.key(byte, &mut Vec::new());
            }
            Screen::Prompt if self.running.is_some() => {
                if byte == INTERRUPT {
                    self.interrupt(shared);
                } else if core::mem::take(&mut self.has_pages) {
                    self.running.into_iter().for_each(|id| shared.stop(id));
                }
            }
            Screen::Prompt => self.key(shared, byte),
        }
    }

    fn key(&mut self, shared: &mut Shared, byte: u8) {
        let mut out = Vec::new();
        let edited = self.editor.key(byte, &mut out);
        shared.write(&out);
        match edited {
            Edited::Going => {}
            Edited::Cancelled => self.open_prompt(shared),
            Edited::Line(line) if line.trim().is_empty() => self.open_prompt(shared),
            Edited::Line(line) => {
                self.last_id = self.last_id.wrapping_add(1);
                if !shared.command(self.last_id, line.trim()) {
                    shared.write(b"Too many commands wait for the toolstack.\r\n");
                    return self.open_prompt(shared);
                }
                if !shared.has_operator {
                    shared.write(b"(waits for the toolstack to start; Ctrl-C gives up)\r\n");
                }
                self.running = Some(self.last_id);
            }
        }
    }

    /// Gives up the command that runs: it is not sent any more, or its answers are ignored.
    fn interrupt(&mut self, shared: &mut Shared) {
        self.running.take().into_iter().for_each(|id| shared.stop(id));
        self.has_pages = false;
        self.dump = None;
        shared.write(b"^C\r\n");
        self.open_prompt(shared);
    }

    fn done(&mut self, shared: &mut Shared) {
        self.running = None;
        self.has_pages = false;
        if self.screen == Screen::Prompt {
            self.open_prompt(shared);
        }
    }

    pub fn log(&mut self, shared: &mut Shared, record: &Record<'_>) {
        if self.is_booting && record.is_for_boot() && !matches!(self.screen, Screen::Guest(_)) {
            self.announce(shared, &one_line(record.text));
        }
    }

    pub fn guest_attached(&mut self, shared: &mut Shared, channel: u32) {
        let Some(guest) = shared.guests.get(channel) else { return };
        let is_awaited = self.awaited == Some(guest.domid);
        let is_back = self.ended.as_ref() == Some(&guest.name);
        if (is_awaited || is_back) && self.screen == Screen::Prompt && self.is_idle() {
            self.open_guest(shared, channel);
        }
    }

    pub fn guest_detached(&mut self, shared: &mut Shared, channel: u32) {
        if !self.shows(channel) {
            shared.guests.remove(channel);
        }
    }

    pub fn operator_detached(&mut self, shared: &mut Shared) {
        let is_waiting = shared.commands.iter().any(|command| Some(command.id) == self.running);
        if self.running.is_some() && !is_waiting {
            shared.write(b"The toolstack is gone; the command may not have ended.\r\n");
            self.dump = None;
            self.done(shared);
        }
    }

    pub fn response(&mut self, shared: &mut Shared, response: &OperatorResponse) {
        let is_awaited = |id: &u32| self.running == Some(*id);
        match response {
            OperatorResponse::Output { id, text } if is_awaited(id) => {
                shared.write(for_terminal(text).as_bytes());
            }
            OperatorResponse::Page { id } if is_awaited(id) => {
                self.has_pages = true;
                shared.write(CLEAR);
            }
            OperatorResponse::Done { id, .. } if is_awaited(id) => self.done(shared),
            OperatorResponse::Attach { id, domid } if is_awaited(id) => {
                self.running = None;
                match shared.guests.by_domid(*domid) {
                    Some(channel) => self.open_guest(shared, channel),
                    None => {
                        shared.write(format!("Domain {domid} has no console.\r\n").as_bytes());
                        self.open_prompt(shared);
                    }
                }
            }
            OperatorResponse::ShowLog { id } if is_awaited(id) => {
                self.dump = Some((shared.log.first_line(), shared.log.end()));
            }
            // Answers to a command that was given up.
            OperatorResponse::Output { .. }
            | OperatorResponse::Page { .. }
            | OperatorResponse::Done { .. }
            | OperatorResponse::Attach { .. }
            | OperatorResponse::ShowLog { .. } => {}
            OperatorResponse::Notice { text } => self.notice(shared, one_line(text)),
            OperatorResponse::GuestsStarted { first, failed } => {
                self.guests_started(shared, *first, *failed);
            }
        }
    }

    fn guests_started(&mut self, shared: &mut Shared, first: u32, failed: u32) {
        self.is_booting = false;
        if failed > 0 {
            self.notice(shared, format!("{failed} of the configured guests could not be started."));
        }
        let channel = shared.guests.by_domid(first).filter(|_| first != 0);
        match (channel, self.screen) {
            // The operator is busy: say it and leave the screen alone.
            (_, Screen::Prompt) if !self.is_idle() => {
                if first != 0 {
                    let line = format!("Domain {first} runs; `xl console {first}` shows its console.");
                    self.notice(shared, line);
                }
            }
            (Some(channel), Screen::Boot | Screen::Prompt) => {
                // What was typed ahead was not meant for the guest.
                self.editor.key(INTERRUPT, &mut Vec::new());
                self.open_guest(shared, channel);
            }
            (None, Screen::Boot | Screen::Prompt) => {
                self.awaited = (first != 0).then_some(first);
                if first == 0 {
                    self.announce(shared, "No guest runs. `help` lists the commands.");
                }
                self.open_prompt(shared);
            }
            (_, Screen::Guest(_)) => {}
        }
    }

    pub fn pump(&mut self, shared: &mut Shared) {
        if let Some((position, end)) = self.dump {
            // A line end becomes two bytes.
            let (text, next) = shared.log.read(position, shared.bulk_room() / 2);
            for line in text.split_inclusive(|&byte| byte == b'\n') {
                match line.strip_suffix(b"\n") {
                    Some(line) => {
                        shared.write(line);
                        shared.write(b"\r\n");
                    }
                    None => shared.write(line),
                }
            }
            let is_complete = next >= end;
            self.dump = (!is_complete).then_some((next, end));
            if is_complete {
                self.done(shared);
            }
        }
        if let Screen::Guest(channel) = self.screen {
            self.pump_guest(shared, channel);
        }
    }

    fn pump_guest(&mut self, shared: &mut Shared, channel: u32) {
        let mut room = shared.bulk_room();
        let Some(guest) = shared.guests.get_mut(channel) else { return };
        let mut text = Vec::new();
        if let Some((replay, end)) = &mut self.replay {
            let old = usize::try_from(end.saturating_sub(guest.shown)).unwrap_or(usize::MAX);
            let (piece, next) = guest.text.read(guest.shown, room.min(old));
            guest.shown = next;
            room -= piece.len();
            text = replay.filter(&piece);
            if next >= *end {
                text.extend(replay.finish());
                self.replay = None;
            }
        }
        // What the guest writes now goes to the terminal as it is.
        if self.replay.is_none() {
            let (piece, next) = guest.text.read(guest.shown, room);
            guest.shown = next;
            text.extend(piece);
        }
        let is_over = guest.is_gone && guest.unshown() == 0;
        let name = one_line(&guest.name);
        shared.write(&text);
        if is_over {
            shared.guests.remove(channel);
            shared.write(format!("\r\nThe console of {name} has ended.\r\n").as_bytes());
            self.open_prompt(shared);
            self.ended = Some(name);
        }
    }
}
