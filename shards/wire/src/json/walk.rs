//! Iterators over the members of an object and the elements of an array: spans only, nothing is copied.
//!
//! Both validate as they go and end after the first fault. Input after the closing bracket is a fault too.

use super::{Fault, FaultKind, Scanner, Text};

/// Where an iterator stands in its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Before,
    Inside,
    Done,
}

/// The members of an object, in their order, repeated names included.
#[derive(Clone, Debug)]
pub struct Members<'a> {
    scanner: Scanner<'a>,
    depth_max: u32,
    stage: Stage,
}

/// The elements of an array, in their order.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    scanner: Scanner<'a>,
    depth_max: u32,
    stage: Stage,
}

impl<'a> Members<'a> {
    /// Reads `input` as one object; its values may nest `depth_max` deep each.
    pub const fn new(input: &'a [u8], depth_max: u32) -> Self {
        Self { scanner: Scanner::new(input), depth_max, stage: Stage::Before }
    }

    /// Allows the value that is read next another depth than the others.
    pub(crate) const fn set_depth_max(&mut self, depth_max: u32) {
        self.depth_max = depth_max;
    }

    /// The next member's name. The caller then takes its [`Members::value`].
    pub(crate) fn name(&mut self) -> Option<Result<Text<'a>, Fault>> {
        let close =
            Close { open: b'{', no_open: FaultKind::Object, close: b'}', no_close: FaultKind::CommaOrBrace };
        match close.advance(&mut self.scanner, &mut self.stage) {
            Ok(false) => None,
            Ok(true) => Some(self.scanner.name().inspect_err(|_| self.stage = Stage::Done)),
            Err(fault) => Some(Err(fault)),
        }
    }

    /// The value of the member whose name was read last.
    pub(crate) fn value(&mut self) -> Result<&'a [u8], Fault> {
        self.scanner.value(self.depth_max).inspect_err(|_| self.stage = Stage::Done)
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Result<(Text<'a>, &'a [u8]), Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.name()? {
            Ok(name) => Some(self.value().map(|value| (name, value))),
            Err(fault) => Some(Err(fault)),
        }
    }
}

impl<'a> Elements<'a> {
    /// Reads `input` as one array; its elements may nest `depth_max` deep each.
    pub const fn new(input: &'a [u8], depth_max: u32) -> Self {
        Self { scanner: Scanner::new(input), depth_max, stage: Stage::Before }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<&'a [u8], Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let close =
            Close { open: b'[', no_open: FaultKind::Array, close: b']', no_close: FaultKind::CommaOrBracket };
        match close.advance(&mut self.scanner, &mut self.stage) {
            Ok(false) => None,
            Ok(true) => Some(self.scanner.value(self.depth_max).inspect_err(|_| self.stage = Stage::Done)),
            Err(fault) => Some(Err(fault)),
        }
    }
}

/// The brackets of a container.
struct Close {
    open: u8,
    no_open: FaultKind,
    close: u8,
    no_close: FaultKind,
}

impl Close {
    /// Moves to the next member or element; `false` behind the last one.
    #[inline]
    fn advance(&self, scanner: &mut Scanner<'_>, stage: &mut Stage) -> Result<bool, Fault> {
        let more = self.try_advance(scanner, *stage);
        *stage = if let Ok(true) = more { Stage::Inside } else { Stage::Done };
        more
    }

    #[inline]
    fn try_advance(&self, scanner: &mut Scanner<'_>, stage: Stage) -> Result<bool, Fault> {
        if stage == Stage::Done {
            return Ok(false);
        }
        scanner.skip_space();
        if stage == Stage::Before {
            scanner.expect(self.open, self.no_open)?;
            scanner.skip_space();
        } else if scanner.take(b',') {
            scanner.skip_space();
            return Ok(true);
        } else if scanner.peek() != Some(self.close) {
            return Err(scanner.fault(self.no_close));
        }
        if !scanner.take(self.close) {
            return Ok(true);
        }
        scanner.end()?;
        Ok(false)
    }
}
