use super::*;
use proptest::prelude::*;
use serde_json::value::RawValue;

/// What `serde_json` makes of the input as a raw value: its token.
fn reference(input: &[u8]) -> Option<&[u8]> {
    serde_json::from_slice::<&RawValue>(input).ok().map(|raw| raw.get().as_bytes())
}

fn scanned(input: &[u8], depth_max: u32) -> Result<&[u8], Fault> {
    let mut scanner = Scanner::new(input);
    let token = scanner.value(depth_max)?;
    scanner.end().map(|()| token)
}

/// Both accept, with one span, or both refuse. Inputs nested deeper than the scanner's stack are out of the comparison.
fn check_same(input: &[u8]) {
    let ours = scanned(input, DEPTH_CEILING);
    if let Err(Fault { kind: FaultKind::TooDeep, .. }) = ours {
        return;
    }
    assert_eq!(ours.ok(), reference(input), "{:?}", String::from_utf8_lossy(input));
    if let Some(text) = ours.ok().filter(|token| token[0] == b'"') {
        check_decode(text);
    }
}

/// Strings decode to what `serde_json` decodes.
fn check_decode(token: &[u8]) {
    let text = Scanner::new(token).string().unwrap().decode().ok().map(|text| text.into_owned());
    assert_eq!(text, serde_json::from_slice::<String>(token).ok(), "{:?}", String::from_utf8_lossy(token));
}

#[test]
fn agrees_with_the_reference_on_chosen_inputs() {
    let inputs: &[&[u8]] = &[
        b"",
        b" ",
        b"null",
        b" null ",
        b"nul",
        b"nulll",
        b"true",
        b"True",
        b"false",
        b"0",
        b"-0",
        b"-",
        b"+1",
        b"01",
        b"-01",
        b"1.",
        b".5",
        b"1.5",
        b"1e",
        b"1e+",
        b"1E-7",
        b"1e999",
        b"123456789012345678901234567890",
        b"NaN",
        b"\"\"",
        b"\"",
        b"\"a",
        b"'a'",
        b"\"\\",
        b"\"\\\"",
        b"\"\\\"\"",
        b"\"\\x\"",
        b"\"\\u12\"",
        b"\"\\u12g4\"",
        b"\"\\u0000\"",
        b"\"\\ud800\"",
        b"\"\\udc00\\ud800\"",
        b"\"\\ud83d\\ude00\"",
        b"\"\\ud83d\\u0041\"",
        b"\"\\ud83dx\"",
        b"\"\\uD83D\\uDE00\"",
        b"\"tab\tinside\"",
        b"\"nul\0\"",
        b"\"del\x7f\"",
        b"\"\x80\"",
        b"\"\xc3\xa9\"",
        b"\"\xc0\xaf\"",
        b"\"\xed\xa0\x80\"",
        b"\"\xf0\x9f\x98\x80\"",
        b"\"\xf5\x80\x80\x80\"",
        b"\xef\xbb\xbf1",
        b"\xc3\xa9",
        b"[]",
        b"[ ]",
        b"[1]",
        b"[1,]",
        b"[,1]",
        b"[1 2]",
        b"[1",
        b"]",
        b"[1]]",
        b"{}",
        b"{ }",
        b"{\"a\":1}",
        b"{\"a\" : 1 , \"b\":[]}",
        b"{\"a\"}",
        b"{\"a\":}",
        b"{\"a\":1,}",
        b"{,}",
        b"{1:2}",
        b"{\"a\":1 \"b\":2}",
        b"{\"a\":{\"b\":[{},[],\"\",0]}}",
        b"{\"a\":1]",
        b"[{]}",
        b"{\"a\":1}x",
        b"\x0b1",
        b"1\xc2\xa0",
        b"/**/1",
        b"[\"0123456789abcdef0123456789abcdef0123456789\"]",
    ];
    for input in inputs {
        check_same(input);
    }
}

#[test]
fn every_byte_at_every_place_of_a_long_string_is_seen() {
    // Covers each lane of the word and chunk steps, and the borrow between neighbouring lanes.
    for place in 0..80 {
        for byte in [0, 1, 0x1f, 0x20, b'!', b'"', b'#', b'[', b'\\', b']', 0x7f, 0x80, 0xff] {
            for neighbour in [b'a', 0x21, 0x5d, 0xc3] {
                let mut input = vec![b'x'; 82];
                (input[0], input[81]) = (b'"', b'"');
                input[place + 1] = byte;
                if place + 2 < 81 {
                    input[place + 2] = neighbour;
                }
                check_same(&input);
            }
        }
    }
}

#[test]
fn depth_is_counted_in_brackets() {
    let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    assert!(scanned(b"1", 0).is_ok());
    assert_eq!(scanned(b"[]", 0), Err(Fault { at: 0, kind: FaultKind::TooDeep }));
    assert!(scanned(&nested(64), 64).is_ok());
    assert_eq!(scanned(&nested(65), 64), Err(Fault { at: 64, kind: FaultKind::TooDeep }));
    assert!(scanned(&nested(128), u32::MAX).is_ok());
    assert_eq!(scanned(&nested(100_000), u32::MAX).unwrap_err().kind, FaultKind::TooDeep);
    assert!(scanned(b"[{\"a\":[]},{\"a\":[]}]", 3).is_ok());
}

#[test]
fn faults_say_where() {
    let check = |input: &[u8], said: &str| assert_eq!(scanned(input, 64).unwrap_err().to_string(), said);
    check(b"{\"a\" 1}", "expected ':' after the member name at byte 5");
    check(b"[1 2]", "expected ',' or ']' at byte 3");
    check(b"\"ab\xff\"", "the bytes are not valid UTF-8 at byte 3");
    check(b"-x", "expected a digit at byte 1");
}

#[test]
fn walks_agree_with_the_whole() {
    let object = b" { \"a\" : [1,2] , \"b\\n\":{}, \"a\":\"\\ud800\" } ";
    let members: Vec<_> = Members::new(object, 64).map(|member| member.unwrap()).collect();
    let values: Vec<&[u8]> = members.iter().map(|(_, value)| *value).collect();
    assert_eq!(values, [&b"[1,2]"[..], b"{}", b"\"\\ud800\""]);
    assert_eq!(members[1].0.decode().unwrap(), "b\n");
    let elements: Vec<_> = Elements::new(b"[1, [2] ,{}]", 64).map(|element| element.unwrap()).collect();
    assert_eq!(elements, [&b"1"[..], b"[2]", b"{}"]);
    assert_eq!(Elements::new(b"[]", 0).count(), 0);
    let mut broken = Elements::new(b"[1,x,2]", 64);
    assert!(broken.next().unwrap().is_ok());
    assert!(broken.next().unwrap().is_err());
    assert!(broken.next().is_none(), "a walk ends after its first fault");
}

#[test]
fn integers_are_exact() {
    assert_eq!(unsigned(b"18446744073709551615"), Some(u64::MAX));
    assert_eq!(unsigned(b"18446744073709551616"), None);
    assert_eq!(signed(b"-9223372036854775808"), Some(i64::MIN));
    assert_eq!(signed(b"-9223372036854775809"), None);
    assert_eq!(signed(b"9223372036854775808"), None);
    assert_eq!((signed(b"-0"), signed(b"-"), signed(b""), unsigned(b"-1")), (Some(0), None, None, None));
    assert_eq!((unsigned(b"1.0"), unsigned(b"1e3"), signed(b"--1")), (None, None, None));
}

/// JSON text with odd but legal spacing, escapes and numbers.
fn any_json() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|flag| flag.to_string()),
        any::<i64>().prop_map(|number| number.to_string()),
        "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,9})?([eE][+-]?[0-9]{1,4})?",
        any_string(),
    ];
    scalar.prop_recursive(5, 48, 6, |inner| {
        let space = "[ \t\r\n]{0,2}";
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..6), space)
                .prop_map(|(items, space)| format!("[{space}{}{space}]", items.join(&format!("{space},")))),
            (prop::collection::vec((any_string(), inner), 0..6), space).prop_map(|(members, space)| {
                let members: Vec<String> =
                    members.iter().map(|(name, value)| format!("{name}{space}:{space}{value}")).collect();
                format!("{{{space}{}{space}}}", members.join(","))
            }),
        ]
    })
}

fn any_string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[ -!#-\\[\\]-~]{1,40}",
        1 => "\\PC{1,4}".prop_filter("quotes and slashes", |text| !text.contains(['"', '\\'])),
        1 => prop::sample::select(vec!["\\n", "\\\"", "\\\\", "\\/", "\\b", "\\f", "\\r", "\\t"]).prop_map(str::to_owned),
        1 => any::<u16>().prop_map(|unit| format!("\\u{unit:04X}")),
        1 => any::<char>().prop_map(|character| {
            let mut units = [0; 2];
            character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
        }),
    ];
    prop::collection::vec(piece, 0..5).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn accepts_generated_json(json in any_json()) {
        prop_assert!(scanned(json.as_bytes(), 64).is_ok(), "{json}");
        check_same(json.as_bytes());
    }

    #[test]
    fn agrees_on_mutated_json(json in any_json(), edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..4)) {
        let mut input = json.into_bytes();
        for (place, byte, edit) in edits {
            let place = place.index(input.len() + 1);
            match edit {
                0 if place < input.len() => input[place] = byte,
                1 if place < input.len() => { input.remove(place); }
                2 => input.insert(place, b"\"\\{}[]:, \n-.eu0"[usize::from(byte) % 15]),
                _ => input.truncate(place),
            }
        }
        check_same(&input);
    }

    #[test]
    fn strings_decode_alike(token in any_string()) {
        check_decode(token.as_bytes());
    }

    #[test]
    fn written_strings_read_back(text in any::<String>(), extra in "[\u{0}-\u{7f}]{0,80}") {
        let text = text + &extra;
        let mut out = Vec::new();
        push_string(&mut out, &text);
        prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text.clone());
        prop_assert_eq!(Scanner::new(&out).string().unwrap().decode().unwrap(), text);
    }
}
