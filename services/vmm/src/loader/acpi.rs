//! The guest's ACPI tables: RSDP, XSDT, FADT (hardware-reduced), a DSDT that only
//! names S5, and a MADT.
//!
//! The two FADT boot flags (no VGA, no CMOS clock) are how Linux recognises a PVH guest when a boot loader
//! started it; without a MADT it never sets up the Xen clock. Source: ACPI 6.5, 5.2.

use alloc::vec;
use alloc::vec::Vec;

const OEM: &[u8; 6] = b"AILURU";
const OEM_TABLE: &[u8; 8] = b"AILURUS ";
const HEADER: usize = 36;
/// FADT revision 5.
const FADT_LEN: usize = 268;
const RSDP_LEN: usize = 36;
/// FADT flag HW_REDUCED_ACPI.
const HW_REDUCED: u32 = 1 << 20;
/// FADT IA-PC boot architecture flags: VGA not present, CMOS clock not present.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// Hardware-reduced sleep registers (FADT 244 and 256): one byte each, in I/O space.
pub const SLEEP_CONTROL_PORT: u16 = 0xb004;
/// See [`SLEEP_CONTROL_PORT`].
pub const SLEEP_STATUS_PORT: u16 = 0xb005;
/// Sleep type that stands for S5 in the DSDT below.
const S5_TYPE: u8 = 5;
/// What is written to the sleep control register to power off: type in bits 2-4, SLP_EN in bit 5.
pub const SLEEP_S5: u8 = S5_TYPE << 2 | 1 << 5;
/// `Name (_S5, Package (4) { 5, 5, 0, 0 })`: without it Linux has no way to power off but to halt.
const S5_AML: [u8; 14] = [0x08, b'_', b'S', b'5', b'_', 0x12, 0x08, 4, 0x0a, S5_TYPE, 0x0a, S5_TYPE, 0, 0];
/// MADT local APIC address.
const LAPIC_BASE: u32 = 0xfee0_0000;

/// A virtual CPU in the MADT.
#[derive(Debug, Clone, Copy)]
pub struct Processor {
    /// Xen vCPU number, which is the ACPI processor number.
    pub vcpu: u8,
    /// Local APIC number.
    pub apic: u8,
}

fn put(table: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = table.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte))
}

/// A table: header, body, and the checksum that makes the bytes' sum zero.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = vec![0; HEADER];
    table.extend_from_slice(body);
    let len = table.len() as u32;
    put(&mut table, 0, signature);
    put(&mut table, 4, &len.to_le_bytes());
    put(&mut table, 8, &[revision, 0]);
    put(&mut table, 10, OEM);
    put(&mut table, 16, OEM_TABLE);
    put(&mut table, 24, &1u32.to_le_bytes());
    put(&mut table, 28, b"AILU");
    put(&mut table, 32, &1u32.to_le_bytes());
    let checksum = sum(&table).wrapping_neg();
    put(&mut table, 9, &[checksum]);
    table
}

/// All tables, to be placed at guest-physical `base`, which is also the RSDP's address.
pub fn tables(base: u64, processors: &[Processor]) -> Vec<u8> {
    let dsdt = table(b"DSDT", 2, &S5_AML);
    let mut madt_body = Vec::new();
    madt_body.extend_from_slice(&LAPIC_BASE.to_le_bytes());
    madt_body.extend_from_slice(&0u32.to_le_bytes());
    for processor in processors {
        // Type 0 (local APIC), 8 bytes, enabled.
        madt_body.extend_from_slice(&[0, 8, processor.vcpu, processor.apic, 1, 0, 0, 0]);
    }
    let madt = table(b"APIC", 4, &madt_body);

    let mut blob = vec![0; RSDP_LEN];
    let add = |blob: &mut Vec<u8>, table: &[u8]| {
        blob.resize(blob.len().next_multiple_of(16), 0);
        let address = base + blob.len() as u64;
        blob.extend_from_slice(table);
        address
    };
    let dsdt_at = add(&mut blob, &dsdt);
    let mut fadt_body = [0; FADT_LEN - HEADER];
    put(&mut fadt_body, 40 - HEADER, &(dsdt_at as u32).to_le_bytes());
    put(&mut fadt_body, 109 - HEADER, &BOOT_ARCH.to_le_bytes());
    put(&mut fadt_body, 112 - HEADER, &HW_REDUCED.to_le_bytes());
    put(&mut fadt_body, 140 - HEADER, &dsdt_at.to_le_bytes());
    for (at, port) in [(244, SLEEP_CONTROL_PORT), (256, SLEEP_STATUS_PORT)] {
        // Generic address: I/O space, 8 bits wide, at bit 0, byte access.
        put(&mut fadt_body, at - HEADER, &[1, 8, 0, 1]);
        put(&mut fadt_body, at + 4 - HEADER, &u64::from(port).to_le_bytes());
    }
    let fadt_at = add(&mut blob, &table(b"FACP", 5, &fadt_body));
    let madt_at = add(&mut blob, &madt);
    let mut pointers = [0; 16];
    put(&mut pointers, 0, &fadt_at.to_le_bytes());
    put(&mut pointers, 8, &madt_at.to_le_bytes());
    let xsdt_at = add(&mut blob, &table(b"XSDT", 1, &pointers));

    let mut rsdp = [0; RSDP_LEN];
    put(&mut rsdp, 0, b"RSD PTR ");
    put(&mut rsdp, 9, OEM);
    put(&mut rsdp, 15, &[2]);
    put(&mut rsdp, 20, &(RSDP_LEN as u32).to_le_bytes());
    put(&mut rsdp, 24, &xsdt_at.to_le_bytes());
    // The first checksum covers the part that ACPI 1.0 had.
    let first = sum(rsdp.get(..20).unwrap_or(&[])).wrapping_neg();
    put(&mut rsdp, 8, &[first]);
    let extended = sum(&rsdp).wrapping_neg();
    put(&mut rsdp, 32, &[extended]);
    put(&mut blob, 0, &rsdp);
    blob
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xfc00_0000;

    fn u64_at(blob: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(blob[at..at + 8].try_into().unwrap())
    }

    fn at(blob: &[u8], address: u64) -> &[u8] {
        let start = (address - BASE) as usize;
        let len = u32::from_le_bytes(blob[start + 4..start + 8].try_into().unwrap()) as usize;
        &blob[start..start + len]
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let blob = tables(BASE, &[Processor { vcpu: 0, apic: 0 }, Processor { vcpu: 1, apic: 2 }]);
        assert_eq!((sum(&blob[..20]), sum(&blob[..36])), (0, 0));
        let xsdt = at(&blob, u64_at(&blob, 24));
        let (fadt, madt) = (at(&blob, u64_at(xsdt, 36)), at(&blob, u64_at(xsdt, 44)));
        let dsdt = at(&blob, u64_at(fadt, 140));
        for (table, signature) in [(xsdt, b"XSDT"), (fadt, b"FACP"), (madt, b"APIC"), (dsdt, b"DSDT")] {
            assert_eq!(&table[..4], signature);
            assert_eq!(sum(table), 0);
        }
        assert_eq!(fadt.len(), 268);
        assert_eq!(fadt[109..111], 0x24u16.to_le_bytes());
        assert_eq!(u64_at(fadt, 248), u64::from(SLEEP_CONTROL_PORT));
        assert_eq!(dsdt[36..].len(), S5_AML.len());
        assert_eq!(madt[44..], [0, 8, 0, 0, 1, 0, 0, 0, 0, 8, 1, 2, 1, 0, 0, 0]);
        assert_eq!(madt[40..44], [0; 4]);
    }
}
