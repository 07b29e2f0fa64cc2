//! Reply order under every kind of completion order, and the rules of the classes.

use super::*;
use proptest::prelude::*;

fn text(out: &Output) -> String {
    let mut all = Vec::new();
    out.pieces(0, |piece| {
        all.extend_from_slice(piece);
        true
    });
    String::from_utf8(all).unwrap()
}

fn line(id: usize, body: &str) -> String {
    format!("{{\"status\":\"success\",\"id\":{id},\"result\":{body}}}\n")
}

fn finish(slots: &mut Slots, out: &mut Output, number: u32, shared: bool) -> bool {
    if shared {
        let value: Arc<[u8]> = Arc::from(&b"\"shared\""[..]);
        slots.complete(out, number, ReplyKind::Success, |o| o.extend_from_slice(b"\"result\":"), Some(value))
    } else {
        slots.complete(out, number, ReplyKind::Success, |o| o.extend_from_slice(b"\"result\":1"), None)
    }
}

proptest! {
    #[test]
    fn ordered_replies_leave_in_request_order(
        picks in proptest::collection::vec((0usize..1000, any::<bool>(), any::<bool>()), 1..400)
    ) {
        let mut slots = Slots::default();
        let mut out = Output::default();
        let (mut open, mut expected, mut id) = (Vec::new(), String::new(), 0);
        for (pick, shared, take) in picks {
            if take || open.is_empty() {
                if pick % 5 == 0 {
                    let members = |o: &mut Vec<u8>| o.extend_from_slice(b"\"result\":0");
                    slots.answer(&mut out, ReplyKind::Success, id.to_string().as_bytes(), members, None);
                    expected += &line(id, "0");
                } else {
                    open.push((slots.next(), shared));
                    slots.take(Class::SingleRead, id.to_string().as_bytes());
                    expected += &line(id, if shared { "\"shared\"" } else { "1" });
                }
                id += 1;
            } else {
                let (number, shared) = open.swap_remove(pick % open.len());
                prop_assert!(finish(&mut slots, &mut out, number, shared));
                prop_assert!(!finish(&mut slots, &mut out, number, shared), "a reply is taken once");
            }
        }
        for (number, shared) in open {
            prop_assert!(finish(&mut slots, &mut out, number, shared));
        }
        prop_assert_eq!(text(&out), expected);
        prop_assert_eq!((slots.used(), slots.early_bytes()), (0, 0));
        prop_assert_eq!(slots.outstanding, [0; 4]);
    }

    #[test]
    fn unordered_replies_leave_as_they_come(picks in proptest::collection::vec((0usize..1000, any::<bool>()), 1..400)) {
        let mut slots = Slots::default();
        slots.set_ordered(false);
        let mut out = Output::default();
        let (mut open, mut expected, mut done) = (Vec::new(), String::new(), Vec::new());
        for (id, (pick, take)) in picks.into_iter().enumerate() {
            if take || open.is_empty() {
                open.push((slots.next(), id));
                slots.take(Class::ScatterRead, id.to_string().as_bytes());
            } else {
                let (number, id) = open.swap_remove(pick % open.len());
                prop_assert!(finish(&mut slots, &mut out, number, false));
                expected += &line(id, "1");
                done.push(number);
            }
        }
        prop_assert_eq!(text(&out), expected);
        prop_assert_eq!(slots.used(), open.len());
        if done.len() < 200 {
            for number in done.iter().filter(|number| open.iter().all(|(live, _)| live != *number)) {
                prop_assert!(!finish(&mut slots, &mut out, *number, false), "a late reply finds no slot");
            }
        }
    }
}

#[test]
fn long_ids_come_back_whole() {
    let mut slots = Slots::default();
    let mut out = Output::default();
    for length in [0, 1, 22, 23, 256] {
        let id = "7".repeat(length);
        slots.take(Class::SingleRead, id.as_bytes());
        let number = slots.next().wrapping_sub(1) & LOCAL_MASK;
        assert!(slots.complete(&mut out, number, ReplyKind::Ok, |_| {}, None));
        let reply = text(&out);
        assert_eq!(reply.contains("\"id\""), length > 0);
        assert!(reply.contains(&id));
        out.clear(0);
    }
}

#[test]
fn numbers_wrap_without_losing_the_order() {
    let mut slots = Slots { head: LOCAL_MASK - 1, ..Slots::default() };
    let mut out = Output::default();
    let numbers: Vec<u32> = (0..20)
        .map(|id: u32| {
            let number = slots.next();
            slots.take(Class::SingleWrite, id.to_string().as_bytes());
            number
        })
        .collect();
    assert_eq!(numbers[2], 0);
    for number in numbers.iter().rev() {
        assert!(finish(&mut slots, &mut out, *number, false));
    }
    let expected: String = (0..20).map(|id| line(id, "1")).collect();
    assert_eq!(text(&out), expected);
}

#[test]
fn early_replies_already_written_do_not_pile_up() {
    let mut slots = Slots::default();
    let mut out = Output::default();
    let body = vec![b'1'; 2000];
    slots.take(Class::SingleRead, b"");
    let mut head = 0;
    for _ in 0..500 {
        let numbers: Vec<u32> = (0..8)
            .map(|_| {
                let number = slots.next();
                slots.take(Class::SingleRead, b"");
                number
            })
            .collect();
        // The last but one stays, so that the reply behind it is always early and the store never falls empty.
        for number in [7, 5, 4, 3, 2, 1, 0].map(|n: usize| numbers[n]).into_iter().chain([head]) {
            let members = |o: &mut Vec<u8>| o.extend_from_slice(&body);
            assert!(slots.complete(&mut out, number, ReplyKind::Success, members, None));
        }
        head = numbers[6];
        assert!(slots.early_bytes() > 0);
        assert!(slots.early.len() <= 20 * 2100 + EARLY_KEEP_BYTES, "{}", slots.early.len());
        out.clear(0);
    }
}

#[test]
fn classes_hold_what_the_protocol_says() {
    use Class::{Barrier, ScatterRead, SingleRead, SingleWrite};
    // What is outstanding, and which of SingleRead, SingleWrite, ScatterRead, Barrier it admits.
    let check = |ordered: bool, outstanding: &[Class], expected: [bool; 4]| {
        let mut slots = Slots::default();
        slots.set_ordered(ordered);
        outstanding.iter().for_each(|class| slots.take(*class, b""));
        let admitted = [SingleRead, SingleWrite, ScatterRead, Barrier].map(|class| slots.admits(class));
        assert_eq!(admitted, expected, "{ordered} {outstanding:?}");
    };
    check(true, &[], [true; 4]);
    check(true, &[SingleRead], [true, true, true, false]);
    check(true, &[SingleWrite], [true, true, true, false]);
    check(true, &[ScatterRead], [true, false, true, false]);
    check(true, &[Barrier], [false; 4]);
    check(false, &[ScatterRead], [true, true, true, false]);
    check(false, &[Barrier], [false; 4]);
}
