use super::*;
use proptest::prelude::*;

const ENABLED: u32 = 0x1ff;

/// At 1 GHz, so that a bus cycle is ten ticks.
fn at(tsc: u64) -> Now {
    Now { tsc, clock: Clock::new(1_000_000, 0) }
}

/// An APIC in xAPIC mode that software enabled.
fn page(id: u32) -> Apic {
    let mut apic = Apic::new(id);
    assert_eq!(put(&mut apic, SVR, ENABLED), None);
    apic
}

/// The same in x2APIC mode.
fn x2apic(id: u32) -> Apic {
    let mut apic = page(id);
    apic.set_base(apic.base() | BASE_X2APIC).unwrap();
    apic
}

fn get(apic: &mut Apic, register: u32) -> u32 {
    apic.read_page(register as usize * 16, 4, &at(0))
}

fn put(apic: &mut Apic, register: u32, value: u32) -> Option<Command> {
    put_at(apic, register, value, 0)
}

fn put_at(apic: &mut Apic, register: u32, value: u32, tsc: u64) -> Option<Command> {
    apic.write_page(register as usize * 16, 4, value, &at(tsc))
}

fn write(apic: &mut Apic, register: u32, value: u64) -> Result<Option<Command>, Refused> {
    apic.write_msr(MSR_FIRST + register, value, &at(0))
}

fn read(apic: &Apic, register: u32) -> Result<u64, Refused> {
    apic.read_msr(MSR_FIRST + register, &at(0))
}

/// Sends to the APIC itself what it sends, if it addresses itself.
fn loop_back(apic: &mut Apic, command: Option<Command>) -> bool {
    let command = command.unwrap();
    let reaches = apic.is_reached(&command, true);
    if reaches {
        apic.receive(command.delivery);
    }
    reaches
}

#[test]
fn after_reset_the_registers_are_as_the_manual_has_them() {
    let mut apic = Apic::new(6);
    assert_eq!((apic.mode(), apic.base()), (Mode::XApic, 0xfee0_0800));
    assert_eq!(Apic::new(0).base(), 0xfee0_0900);
    let expected = [(ID, 6 << 24), (VERSION, 0x5_0014), (TPR, 0), (LDR, 0), (DFR, u32::MAX), (SVR, 0xff)];
    for (register, value) in expected.into_iter().chain((LVT_TIMER..=LVT_LAST).map(|lvt| (lvt, 0x1_0000))) {
        assert_eq!(get(&mut apic, register), value, "{register:#x}");
    }
    for register in [APR, PPR, REMOTE_READ, ESR, ICR, ICR_HIGH, TIMER_INITIAL, TIMER_CURRENT, TIMER_DIVIDE] {
        assert_eq!(get(&mut apic, register), 0, "{register:#x}");
    }
    assert!((ISR..ESR).all(|register| get(&mut apic, register) == 0));
    assert!(!apic.is_enabled());
}

#[test]
fn interrupts_are_delivered_by_priority_and_ended_in_that_order() {
    let mut apic = x2apic(0);
    for vector in [0x41, 0x61, 0x62, 0x31] {
        let command = write(&mut apic, SELF_IPI, vector).unwrap();
        assert!(loop_back(&mut apic, command));
    }
    assert_eq!((apic.next(), read(&apic, IRR + 3), read(&apic, IRR + 1)), (Some(0x62), Ok(6), Ok(1 << 17)));
    apic.accept(0x62);
    assert_eq!((apic.next(), read(&apic, ISR + 3), read(&apic, PPR)), (None, Ok(4), Ok(0x60)));
    write(&mut apic, EOI, 0).unwrap();
    assert_eq!(apic.next(), Some(0x61), "the same class had to wait");
    apic.accept(0x61);
    apic.raise(0x71);
    assert_eq!(apic.next(), Some(0x71), "a higher class interrupts");
    apic.accept(0x71);
    write(&mut apic, EOI, 0).unwrap();
    assert_eq!(read(&apic, ISR + 3), Ok(2), "the highest in service ends first");
    write(&mut apic, EOI, 0).unwrap();
    write(&mut apic, TPR, 0x40).unwrap();
    assert_eq!((apic.next(), read(&apic, PPR)), (None, Ok(0x40)));
    write(&mut apic, TPR, 0x3f).unwrap();
    assert_eq!(apic.next(), Some(0x41));
    apic.accept(0x41);
    apic.retract(0x41);
    assert_eq!((apic.next(), read(&apic, ISR + 2)), (Some(0x41), Ok(0)), "delivery broke");
    write(&mut apic, EOI, 0).unwrap();
}

#[test]
fn software_disabled_it_masks_its_vectors_and_delivers_nothing() {
    let mut apic = page(0);
    put(&mut apic, LVT_TIMER, 0x40);
    apic.raise(0x50);
    put(&mut apic, SVR, 0xff);
    assert_eq!((apic.next(), get(&mut apic, LVT_TIMER)), (None, 0x1_0040));
    put(&mut apic, LVT_TIMER, 0x41);
    assert_eq!(get(&mut apic, LVT_TIMER), 0x1_0041, "the mask stays");
    apic.raise(0x60);
    apic.receive(Delivery::Nmi);
    apic.receive(Delivery::Startup(9));
    assert!(apic.has_command() && apic.take_nmi() && !apic.take_nmi());
    assert_eq!((apic.take_startup(), apic.take_startup()), (Some(9), None));
    put(&mut apic, SVR, ENABLED);
    assert_eq!(apic.next(), Some(0x50), "what came before waits, what came meanwhile is lost");
    assert_eq!(get(&mut apic, LVT_TIMER), 0x1_0041);
}

#[test]
fn modes_change_along_the_legal_paths_only() {
    let (off, page, x2, odd) = (0, BASE_ENABLED, BASE_ENABLED | BASE_X2APIC, BASE_X2APIC);
    let paths = [(off, page), (page, x2), (x2, off), (page, off), (off, off), (page, page), (x2, x2)];
    for from in [off, page, x2] {
        for to in [off, page, x2, odd] {
            let mut apic = Apic::new(0);
            if from == off {
                apic.set_base(PAGE_BASE).unwrap();
            } else {
                apic.set_base(PAGE_BASE | from).unwrap();
            }
            let is_legal = paths.contains(&(from, to));
            assert_eq!(apic.set_base(PAGE_BASE | BASE_BSP | to).is_ok(), is_legal, "{from:#x} {to:#x}");
        }
    }
    let mut apic = Apic::new(0);
    assert_eq!(apic.set_base(0xfed0_0000 | BASE_ENABLED), Err(Refused), "the page cannot be moved");
    assert_eq!(apic.set_base(PAGE_BASE | BASE_ENABLED | 1), Err(Refused));
    assert_eq!(apic.set_base(1 << 52 | PAGE_BASE | BASE_ENABLED), Err(Refused));
    put(&mut apic, TPR, 0x20);
    apic.set_base(PAGE_BASE).unwrap();
    apic.receive(Delivery::Nmi);
    assert!(!apic.has_command(), "disabled it receives nothing");
    assert_eq!(read(&apic, TPR), Err(Refused));
    apic.set_base(PAGE_BASE | BASE_ENABLED).unwrap();
    assert_eq!(get(&mut apic, TPR), 0, "enabled again it is reset");
    assert_eq!(read(&apic, TPR), Err(Refused), "no MSRs in xAPIC mode");
}

#[test]
fn x2apic_mode_has_its_own_numbers_and_refuses_what_is_reserved() {
    let mut apic = page(0x26);
    put(&mut apic, ID, 0x55 << 24);
    put(&mut apic, LDR, 0x0155_5555);
    assert_eq!((get(&mut apic, ID), get(&mut apic, LDR)), (0x55 << 24, 0x0100_0000));
    put(&mut apic, DFR, 0x0123_4567);
    assert_eq!(get(&mut apic, DFR), 0x0fff_ffff);
    apic.set_base(apic.base() | BASE_X2APIC).unwrap();
    assert_eq!((read(&apic, ID), read(&apic, LDR)), (Ok(0x26), Ok(0x2_0040)));
    for register in [ID, VERSION, PPR, LDR, DFR, ICR_HIGH, ISR, IRR, TMR, TIMER_CURRENT, APR, 0x40, 0xff, 0] {
        assert_eq!(write(&mut apic, register, 0), Err(Refused), "{register:#x}");
    }
    for (register, value) in [
        (TPR, 0x100),
        (EOI, 1),
        (ESR, 1),
        (SVR, 0x400),
        (LVT_TIMER, 0x8_0000),
        (LVT_TIMER + 1, 0x2_0000),
        (LVT_LAST, 0x400),
        (TIMER_DIVIDE, 4),
        (ICR, 1 << 12),
        (ICR, 1 << 20),
        (SELF_IPI, 0x100),
        (SVR, 1 << 32),
        (TIMER_INITIAL, 1 << 32),
    ] {
        assert_eq!(write(&mut apic, register, value), Err(Refused), "{register:#x} {value:#x}");
    }
    for register in [APR, EOI, DFR, ICR_HIGH, SELF_IPI, REMOTE_READ, 0x40, 0] {
        assert_eq!(read(&apic, register), Err(Refused), "{register:#x}");
    }
    write(&mut apic, LVT_TIMER + 3, 0x1_d7ff).unwrap();
    assert_eq!(read(&apic, LVT_TIMER + 3), Ok(0x1_87ff), "status bits are read-only");
}

#[test]
fn commands_are_decoded_and_matched_by_mode() {
    let mut apic = page(4);
    put(&mut apic, ICR_HIGH, 0x0400_1234);
    assert_eq!(get(&mut apic, ICR_HIGH), 0x0400_0000);
    let command = put(&mut apic, ICR, 0x1_50f6).unwrap();
    let expected = Command {
        shorthand: Shorthand::None,
        destination: 4,
        is_logical: false,
        delivery: Delivery::Fixed(0xf6),
    };
    assert_eq!((command, get(&mut apic, ICR)), (expected, 0x40f6));
    assert!(apic.is_reached(&command, true) && !page(6).is_reached(&command, false));
    let deliveries = [
        (0x4540, Some(Delivery::Init)),
        (0xc500, Some(Delivery::Init)),
        (0x8500, None),
        (0x4612, Some(Delivery::Startup(0x12))),
        (0x4600, Some(Delivery::Startup(0))),
        (0x4400, Some(Delivery::Nmi)),
        (0x4140, Some(Delivery::Lowest(0x40))),
        (0x4200, None),
        (0x4340, None),
        (0x4740, None),
    ];
    for (low, delivery) in deliveries {
        assert_eq!(put(&mut apic, ICR, low).map(|command| command.delivery), delivery, "{low:#x}");
    }
    for (shorthand, oneself, other) in [(1, true, false), (2, true, true), (3, false, true)] {
        let command = put(&mut apic, ICR, shorthand << 18 | 0x40).unwrap();
        assert_eq!(apic.is_reached(&command, true), oneself);
        assert_eq!(apic.is_reached(&command, false), other);
    }
    put(&mut apic, ICR_HIGH, 0xff00_0000);
    let everybody = put(&mut apic, ICR, 0x40).unwrap();
    assert!(apic.is_reached(&everybody, true) && x2apic(0x300).is_reached(&everybody, false));
    let everybody = write(&mut x2apic(1), ICR, 0xffff_ffff_0000_0040).unwrap().unwrap();
    assert!(page(4).is_reached(&everybody, false));
    let not_everybody = write(&mut x2apic(1), ICR, 0xff_0000_0040).unwrap().unwrap();
    assert!(!page(4).is_reached(&not_everybody, false));
}

#[test]
fn logical_destinations_are_flat_clustered_or_x2apic() {
    let to = |apic: &mut Apic, ldr: u32, dfr: u32, destination: u32| {
        put(apic, LDR, ldr << 24);
        put(apic, DFR, dfr);
        let command = Command {
            shorthand: Shorthand::None,
            destination,
            is_logical: true,
            delivery: Delivery::Fixed(0x40),
        };
        apic.is_reached(&command, false)
    };
    let mut apic = page(2);
    assert!(to(&mut apic, 0x04, DFR_FLAT, 0x0c) && !to(&mut apic, 0x04, DFR_FLAT, 0x0b));
    assert!(to(&mut apic, 0x24, 0, 0x26) && !to(&mut apic, 0x24, 0, 0x36) && !to(&mut apic, 0x24, 0, 0x2b));
    assert!(!to(&mut apic, 0x24, 0x7fff_ffff, 0x24), "no such model");
    let mut apic = x2apic(0x12);
    assert!(to(&mut apic, 0, DFR_FLAT, 0x1_0004));
    assert!(!to(&mut apic, 0, DFR_FLAT, 0x1_0008) && !to(&mut apic, 0, DFR_FLAT, 4));
}

#[test]
fn errors_are_latched_by_a_write_and_interrupt_once() {
    let mut apic = page(0);
    put(&mut apic, LVT_LAST, 0x44);
    assert_eq!(put(&mut apic, ICR, 0x4_000f), None);
    assert_eq!((get(&mut apic, ESR), apic.next()), (0, Some(0x44)));
    apic.accept(0x44);
    put(&mut apic, ICR, 0x4_000e);
    put(&mut apic, EOI, 0);
    assert_eq!(apic.next(), None, "the same error again is no news");
    put(&mut apic, ESR, 0xffff);
    assert_eq!(get(&mut apic, ESR), ERROR_SEND_VECTOR);
    put(&mut apic, ESR, 0);
    assert_eq!(get(&mut apic, ESR), 0);
    apic.raise(3);
    assert_eq!(get(&mut apic, 4), 0);
    put(&mut apic, 0x3f, 0);
    put(&mut apic, VERSION, 0);
    put(&mut apic, ESR, 0);
    assert_eq!(get(&mut apic, ESR), ERROR_RECEIVE_VECTOR | ERROR_REGISTER);
    put(&mut apic, LVT_LAST, 0x4);
    put(&mut apic, ICR, 0x4_0000);
    put(&mut apic, ESR, 0);
    assert_eq!(get(&mut apic, ESR), ERROR_SEND_VECTOR | ERROR_RECEIVE_VECTOR);
}

#[test]
fn a_one_shot_timer_counts_and_fires_once() {
    let mut apic = page(0);
    put(&mut apic, LVT_TIMER, 0x40);
    put(&mut apic, TIMER_DIVIDE, 0xb);
    put_at(&mut apic, TIMER_INITIAL, 1000, 5000);
    let count = |apic: &mut Apic, tsc| apic.read_page(0x390, 4, &at(tsc));
    assert_eq!((count(&mut apic, 5000), count(&mut apic, 5095), count(&mut apic, 14_990)), (1000, 991, 1));
    assert!((15_000..15_020).contains(&apic.due()), "{}", apic.due());
    apic.tick(&at(14_999));
    assert_eq!(apic.next(), None);
    apic.tick(&at(apic.due()));
    assert_eq!((apic.next(), apic.due(), count(&mut apic, 16_000)), (Some(0x40), 0, 0));
    assert_eq!(get(&mut apic, TIMER_INITIAL), 1000);
    put_at(&mut apic, TIMER_INITIAL, 1000, 20_000);
    put_at(&mut apic, TIMER_INITIAL, 0, 20_001);
    assert_eq!(apic.due(), 0, "0 stops it");
}

#[test]
fn the_divisor_may_change_while_it_counts() {
    for (divide, factor) in [(0xb, 1), (0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xa, 128)] {
        let mut apic = page(0);
        put(&mut apic, TIMER_DIVIDE, divide | 0xffff_fff4);
        assert_eq!(get(&mut apic, TIMER_DIVIDE), divide);
        put(&mut apic, TIMER_INITIAL, 100);
        assert!(apic.due().abs_diff(1000 * factor) < 8, "{divide:#x}: {}", apic.due());
        put_at(&mut apic, TIMER_DIVIDE, 0xb, 400 * factor);
        assert_eq!(apic.read_page(0x390, 4, &at(400 * factor)), 60);
        assert!(apic.due().abs_diff(400 * factor + 600) < 8, "{divide:#x}: {}", apic.due());
    }
}

#[test]
fn a_periodic_timer_keeps_its_beat_and_a_masked_one_is_silent() {
    let mut apic = page(0);
    put(&mut apic, LVT_TIMER, 0x2_0040);
    put(&mut apic, TIMER_DIVIDE, 0xb);
    put(&mut apic, TIMER_INITIAL, 10_000);
    for beat in 1..4 {
        assert!(apic.due().abs_diff(100_000 * beat) < 8, "{}", apic.due());
        apic.tick(&at(apic.due() + 700));
        assert_eq!(apic.next(), Some(0x40));
        apic.accept(0x40);
        put(&mut apic, EOI, 0);
    }
    apic.tick(&at(1_050_000));
    assert!(apic.due().abs_diff(1_100_000) < 8, "beats that were missed are one: {}", apic.due());
    assert_eq!(apic.read_page(0x390, 4, &at(1_050_000)), 5000);
    put_at(&mut apic, LVT_TIMER, 0x40, 1_050_000);
    assert!(apic.due().abs_diff(1_100_000) < 8, "one-shot now, from the same count");
    apic.tick(&at(apic.due()));
    assert_eq!(apic.due(), 0);
    put_at(&mut apic, LVT_TIMER, 0x3_0040, 2_000_000);
    put_at(&mut apic, TIMER_INITIAL, 1, 2_000_000);
    assert_eq!(apic.next(), Some(0x40));
    apic.accept(0x40);
    put(&mut apic, EOI, 0);
    assert!(apic.due() >= 2_020_000, "not as often as it asks");
    apic.tick(&at(apic.due()));
    assert_eq!(apic.next(), None, "masked");
}

#[test]
fn deadline_mode_waits_for_a_tsc_and_has_no_count() {
    let mut apic = page(0);
    apic.set_deadline(77);
    assert_eq!((apic.deadline(), apic.due()), (0, 0), "another mode");
    put(&mut apic, TIMER_INITIAL, 1000);
    put(&mut apic, LVT_TIMER, 0x4_0040);
    put(&mut apic, TIMER_INITIAL, 1000);
    assert_eq!((get(&mut apic, TIMER_INITIAL), get(&mut apic, TIMER_CURRENT), apic.due()), (0, 0, 0));
    apic.set_deadline(5000);
    assert_eq!((apic.deadline(), apic.due()), (5000, 5000));
    apic.tick(&at(4999));
    assert_eq!(apic.next(), None);
    apic.tick(&at(5000));
    assert_eq!((apic.next(), apic.deadline(), apic.due()), (Some(0x40), 0, 0));
    apic.set_deadline(9000);
    put(&mut apic, LVT_TIMER, 0x40);
    assert_eq!((apic.deadline(), apic.due()), (0, 0), "leaving the mode disarms");
}

#[test]
fn init_keeps_numbers_and_mode_only() {
    let mut apic = x2apic(2);
    write(&mut apic, TPR, 0x20).unwrap();
    apic.receive(Delivery::Startup(1));
    apic.receive(Delivery::Init);
    assert_eq!(apic.take_startup(), None, "INIT comes first");
    apic.receive(Delivery::Startup(7));
    assert!(apic.take_init() && !apic.take_init());
    assert_eq!(apic.take_startup(), Some(7));
    apic.reset();
    assert_eq!(
        (apic.mode(), read(&apic, ID), read(&apic, TPR), read(&apic, SVR)),
        (Mode::X2Apic, Ok(2), Ok(0), Ok(0xff))
    );
}

#[test]
fn narrow_accesses_reach_parts_of_a_register() {
    let mut apic = page(0);
    apic.write_page(0x0f0, 1, 0x77, &at(0));
    assert_eq!(get(&mut apic, SVR), 0x177);
    assert_eq!(apic.read_page(0x0f1, 1, &at(0)), 1);
    apic.write_page(0x0d2, 2, 0x1234, &at(0));
    assert_eq!((get(&mut apic, LDR), apic.read_page(0x0d3, 1, &at(0))), (0x1200_0000, 0x12));
    assert_eq!((apic.read_page(0x0f0, 8, &at(0)), apic.read_page(0x0f2, 4, &at(0))), (0, 0));
    apic.write_page(0x0f0, 8, 0, &at(0));
    apic.write_page(0x0f4, 4, 0, &at(0));
    assert_eq!(get(&mut apic, SVR), 0x177, "ignored");
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_breaks_it(
        steps in prop::collection::vec((0u8..9, 0usize..0x500, any::<u64>(), 0usize..9), 0..200)
    ) {
        let mut apic = Apic::new(2);
        let mut now = at(0);
        for (what, place, value, len) in steps {
            now.tsc = now.tsc.wrapping_add(value >> 40);
            let msr = MSR_FIRST + place as u32 % 0x100;
            let sent = match what {
                0 => apic.write_msr(msr, value, &now).unwrap_or(None),
                1 => apic.write_msr(msr, value & 0x3_00ff, &now).unwrap_or(None),
                2 => apic.write_page(place & 0xfff, len, value as u32, &now),
                3 => apic.write_page(place & 0xff0, 4, value as u32, &now),
                4 => { let _ = apic.read_page(place, len, &now); None }
                5 => { let _ = (apic.read_msr(msr, &now), apic.set_base(value & 0xd00 | PAGE_BASE)); None }
                6 => { apic.set_deadline(value); None }
                7 => { apic.tick(&now); None }
                _ => { apic.next().into_iter().for_each(|vector| apic.accept(vector)); None }
            };
            if let Some(command) = sent && apic.is_reached(&command, true) {
                apic.receive(command.delivery);
            }
            let waiting = apic.next();
            prop_assert!(waiting.is_none_or(|vector| apic.is_enabled() && vector > apic.priority()));
        }
    }
}
