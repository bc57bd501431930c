//! The console's three protocols: everybody's log, guests' consoles, the operator's commands.

use postcard::experimental::max_size::MaxSize;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::channel::{ChannelKind, Protocol};
use crate::text::{Bytes, Text};

/// A domain (A) and the console's log (B).
#[derive(Debug)]
pub enum Log {}

impl Protocol for Log {
    type Request = LogRecord;
    type Response = ();
    const KIND: ChannelKind = ChannelKind::Log;
    const VERSION: u16 = 1;
    const SLOTS: usize = 16;
}

/// One line of a domain's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct LogRecord {
    /// 1 error, 2 warning, 3 information, 4 debug, 5 trace (as the `log` crate numbers them).
    pub level: u8,
    /// TSC when it was written.
    pub tsc: u64,
    /// Records lost since the last one because the ring was full.
    pub lost: u32,
    /// The text, without a line end.
    pub text: Text<228>,
}

/// A VMM (A) and the console (B).
#[derive(Debug)]
pub enum GuestConsole {}

impl Protocol for GuestConsole {
    type Request = GuestOutput;
    type Response = GuestInput;
    const KIND: ChannelKind = ChannelKind::GuestConsole;
    const VERSION: u16 = 1;
    const SLOTS: usize = 16;
}

/// What the guest wrote to its console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct GuestOutput(pub Bytes<246>);

/// What the operator typed at the guest's console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct GuestInput(pub Bytes<246>);

/// The console (A) and the toolstack (B).
#[derive(Debug)]
pub enum Operator {}

impl Protocol for Operator {
    type Request = OperatorRequest;
    type Response = OperatorResponse;
    const KIND: ChannelKind = ChannelKind::Operator;
    const VERSION: u16 = 2;
    const SLOTS: usize = 16;
}

/// What the operator wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub struct OperatorRequest {
    /// Chosen by the console for each command; the answers carry it.
    pub id: u32,
    /// To run it or to end it.
    pub order: Order,
}

/// What is to be done about a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum Order {
    /// A new command line, for example `xl list`.
    Run(Text<512>),
    /// The operator gave it up, or pressed a key while it showed pages: one that only shows something ends
    /// ([`OperatorResponse::Done`]), any other goes on. An unknown one is no error: it may have ended meanwhile.
    Stop,
}

/// What the toolstack answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Schema, MaxSize)]
pub enum OperatorResponse {
    /// Part of the command's output; lines end in `\n`.
    Output {
        /// From the request.
        id: u32,
        /// Text.
        text: Text<500>,
    },
    /// What follows replaces what the command printed so far. From the first page on any key ends it
    /// ([`Order::Stop`]).
    Page {
        /// From the request.
        id: u32,
    },
    /// The command ended.
    Done {
        /// From the request.
        id: u32,
        /// 0: success.
        status: u8,
    },
    /// Show this guest's console from now on (`xl console`), then the command is done.
    Attach {
        /// From the request.
        id: u32,
        /// The guest's domain ID.
        domid: u32,
    },
    /// Print the log of all domains (`xl dmesg`), then the command is done.
    ShowLog {
        /// From the request.
        id: u32,
    },
    /// Something happened that the operator should know (a guest started, ended, crashed).
    Notice {
        /// A sentence.
        text: Text<240>,
    },
    /// Every guest of the boot configuration was started (or refused, see the notices). In interactive
    /// use the console now shows the first guest.
    GuestsStarted {
        /// Domain ID of the first guest that runs, or 0.
        first: u32,
        /// How many could not be started.
        failed: u32,
    },
}
