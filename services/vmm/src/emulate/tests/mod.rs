//! Tests of the emulation: against the host's processor, against another decoder, and on a machine.

mod decoder;
mod machine;
mod native;
