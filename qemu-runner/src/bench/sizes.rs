//! Programs without symbols and debug information, as they are in the bundle.

use image_builder::elf;

use crate::Error;
use crate::bench::goals::table;
use crate::bench::report::Figure;
use crate::session::Session;

/// The kernel's, init's and every service's.
///
/// # Errors
/// The files cannot be read.
pub fn measure(session: &Session) -> Result<Vec<Figure>, Error> {
    let kernel = &session.config.kernel;
    let bytes = std::fs::read(kernel).map_err(Error::path(kernel))?;
    let stripped = elf::shorten("kernel", &bytes).map_err(image_builder::Error::from)?;
    let bundle = session.bundle();
    let bytes = std::fs::read(&bundle).map_err(Error::path(&bundle))?;
    let layout = image_builder::bundle::read(&bytes)?;
    let init: u64 = layout.segments.iter().map(|(_, _, file_len, _, _)| *file_len).sum();
    let mut figures = vec![Figure::new("size-kernel", stripped.len() as u64), Figure::new("size-init", init)];
    for entry in &layout.entries {
        let Some(service) = entry.name.strip_prefix("services/") else { continue };
        let row = table().find(|row| row.name.strip_prefix("size-") == Some(service));
        figures.extend(row.map(|row| Figure::new(row.name, entry.len)));
    }
    Ok(figures)
}
