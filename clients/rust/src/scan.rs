//! Going through keys page by page.
//!
//! Invariant: a page is asked for only when the caller needs it; after an error the iteration ends.

use crate::client::Client;
use crate::command::Command;
use crate::error::Error;
use crate::options::setters;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::VecDeque;

/// Optional fields of SCAN.
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    prefix: Option<String>,
    page: Option<u32>,
    with_values: bool,
}

impl ScanOptions {
    setters! {
        /// Asks for values too.
        with_values: bool => |all, value| all.with_values = value;
        /// Keys a page, 100 by default.
        page: u32 => |all, value| all.page = Some(value);
    }

    /// Only keys that begin with this.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }
}

/// One key of a scan.
#[derive(Clone, Debug)]
pub struct ScanItem {
    /// The key.
    pub key: String,
    /// Its value, when values were asked for.
    pub value: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Page {
    keys: Vec<String>,
    #[serde(default)]
    values: Vec<Box<RawValue>>,
    cursor: Option<String>,
}

/// Iterator over keys, without order; made by [`Client::scan`].
#[derive(Debug)]
pub struct Scan<'a> {
    client: &'a mut Client,
    options: ScanOptions,
    page: VecDeque<ScanItem>,
    cursor: Option<String>,
    ended: bool,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(client: &'a mut Client, options: ScanOptions) -> Self {
        Self { client, options, page: VecDeque::new(), cursor: None, ended: false }
    }

    fn fetch(&mut self) -> Result<(), Error> {
        let command = Command::new("SCAN")
            .optional("prefix", self.options.prefix.as_ref())
            .optional("limit", self.options.page.as_ref())
            .optional("with_values", self.options.with_values.then_some(&true))
            .optional("cursor", self.cursor.as_ref());
        let page: Page = self.client.execute(command)?.result()?;
        let mut values = page.values.into_iter();
        self.page.extend(page.keys.into_iter().map(|key| ScanItem { key, value: values.next() }));
        self.ended = page.cursor.is_none();
        self.cursor = page.cursor;
        Ok(())
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<ScanItem, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        // An empty page with a cursor is not the end.
        while self.page.is_empty() && !self.ended {
            if let Err(error) = self.fetch() {
                self.ended = true;
                return Some(Err(error));
            }
        }
        self.page.pop_front().map(Ok)
    }
}
