//! The seam to the processor: everything that another architecture or vendor would do differently.
//!
//! On the host, where the logic is tested, a stand-in keeps just enough state for the tests.

#[cfg(not(target_os = "none"))]
mod host;
#[cfg(target_os = "none")]
pub mod x86_64;

#[cfg(not(target_os = "none"))]
pub use host::*;
#[cfg(target_os = "none")]
pub use x86_64::*;
