//! The synchronous client: connecting, running commands, and a method per data command.
//!
//! The methods only build commands and read results; routing and retries are [`crate::core`]'s. Search, index and
//! administrative methods are in `search.rs` and `admin.rs`. A client is for one thread; see [`crate::Pool`] for many.

use crate::command::Command;
use crate::core::Core;
use crate::error::Error;
use crate::options::{ClientOptions, Consistency, DeleteOptions, SetOptions, ttl_ms};
use crate::pipeline::Pipeline;
use crate::reply::Reply;
use crate::scan::{Scan, ScanOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::time::Duration;
use strand_wire::code::Code;

/// A client of one server, or of one cluster through several addresses.
///
/// ```no_run
/// use serde_json::json;
/// use strand_client::Client;
///
/// let mut client = Client::connect("127.0.0.1:8000")?;
/// client.set("user:1", &json!({"name": "Ada", "visits": 1}))?;
/// assert_eq!(client.get("user:1")?.expect("it was set")["name"], "Ada");
/// # Ok::<(), strand_client::Error>(())
/// ```
#[derive(Debug)]
pub struct Client {
    pub(crate) core: Core,
}

/// What remains of a key's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// The key does not exist.
    Absent,
    /// The key does not expire.
    Forever,
    /// The key expires after this time.
    Left(Duration),
}

/// A value with the version of the record that holds it.
#[derive(Clone, Debug)]
pub struct Versioned {
    /// The value, byte for byte.
    pub value: Box<RawValue>,
    /// Opaque; compared only for equality.
    pub version: String,
}

impl Client {
    /// Connects to `HOST:PORT` (IPv6 in brackets), or to several nodes of one cluster with commas between, with default
    /// options.
    pub fn connect(addresses: &str) -> Result<Self, Error> {
        let addresses: Vec<&str> = addresses.split(',').map(str::trim).collect();
        Self::connect_with(&addresses, ClientOptions::default())
    }

    /// Connects to the first of several nodes of one cluster that can be reached; the others are kept for failover.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use strand_client::{Client, ClientOptions};
    ///
    /// let options = ClientOptions { timeout: Duration::from_secs(3), ..ClientOptions::default() };
    /// let client = Client::connect_with(&["10.0.0.1:8000", "10.0.0.2:8000"], options)?;
    /// # Ok::<(), strand_client::Error>(())
    /// ```
    pub fn connect_with<A: AsRef<str>>(addresses: &[A], options: ClientOptions) -> Result<Self, Error> {
        let seeds = addresses.iter().map(|address| address.as_ref().to_owned()).collect();
        Ok(Self { core: Core::connect(seeds, options)? })
    }

    /// The id that this client's writes carry, unique per instance.
    pub fn client_id(&self) -> &str {
        self.core.client_id()
    }

    /// The address that unrouted commands go to.
    pub fn address(&self) -> &str {
        self.core.address()
    }

    /// Whether the connection is open and nothing unexpected waits on it. Sends nothing.
    pub fn is_healthy(&self) -> bool {
        self.core.is_healthy()
    }

    /// Runs a command with retries; an error reply becomes [`Error::Server`].
    pub fn execute(&mut self, command: Command) -> Result<Reply, Error> {
        self.core.run_one(command)?.into_result()
    }

    /// Runs a command; its reply comes back even if it is an error, with the server's own bytes in [`Reply::line`].
    pub fn execute_raw(&mut self, command: Command) -> Result<Reply, Error> {
        self.core.run_one(command)
    }

    /// Sends a command given as a JSON object and returns the whole reply, an error reply too.
    ///
    /// ```no_run
    /// # let mut client = strand_client::Client::connect("127.0.0.1:8000")?;
    /// let reply = client.send_command(&serde_json::json!({"command": "PING", "id": 7}))?;
    /// assert_eq!((&reply["result"], &reply["id"]), (&"PONG".into(), &7.into()));
    /// # Ok::<(), strand_client::Error>(())
    /// ```
    pub fn send_command(&mut self, command: &Value) -> Result<Value, Error> {
        if self.core.options.ordered {
            return Ok(self.core.run_one(Command::from_value(command)?)?.to_value());
        }
        // In unordered mode ids are the client's own; the caller's is put back into the reply.
        let mut inner = command.clone();
        let id = inner.as_object_mut().and_then(|members| members.remove("id"));
        let mut reply = self.core.run_one(Command::from_value(&inner)?)?.to_value();
        if let Some(members) = reply.as_object_mut() {
            members.remove("id");
            members.extend(id.map(|id| ("id".to_owned(), id)));
        }
        Ok(reply)
    }

    /// Starts a pipeline: commands queue up and travel together.
    pub fn pipeline(&mut self) -> Pipeline<'_> {
        Pipeline::new(self)
    }

    fn result<T: DeserializeOwned>(&mut self, command: Command) -> Result<T, Error> {
        self.execute(command)?.result()
    }

    /// Whether the server answers.
    pub fn ping(&mut self) -> Result<(), Error> {
        self.execute(Command::new("PING")).map(drop)
    }

    /// Stores a value under a key. Clears a time to live.
    pub fn set<V: Serialize + ?Sized>(&mut self, key: &str, value: &V) -> Result<(), Error> {
        self.execute(Command::set(key, value)?).map(drop)
    }

    /// Stores a value with optional fields; gives the new version when it was asked for.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use strand_client::{If, SetOptions};
    ///
    /// # let mut client = strand_client::Client::connect("127.0.0.1:8000")?;
    /// let lock = SetOptions::default().condition(If::absent()).ttl(Duration::from_secs(30));
    /// match client.set_with("lock", "worker-1", &lock) {
    ///     Ok(_) => println!("ours"),
    ///     Err(error) if error.is(strand_client::Code::Conflict) => println!("taken"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok::<(), strand_client::Error>(())
    /// ```
    pub fn set_with<V>(&mut self, key: &str, value: &V, options: &SetOptions) -> Result<Option<String>, Error>
    where
        V: Serialize + ?Sized,
    {
        let reply = self.execute(options.apply(Command::set(key, value)?))?;
        Ok(reply.version().map(str::to_owned))
    }

    /// Stores a value if the key does not exist; false when it does.
    pub fn set_if_absent<V: Serialize + ?Sized>(&mut self, key: &str, value: &V) -> Result<bool, Error> {
        let options = SetOptions::default().condition(crate::options::If::absent());
        match self.set_with(key, value, &options) {
            Ok(_) => Ok(true),
            Err(error) if error.is(Code::Conflict) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The value of a key; none when the key does not exist.
    pub fn get(&mut self, key: &str) -> Result<Option<Value>, Error> {
        self.get_as(key)
    }

    /// The value of a key as any type that can be read from it.
    pub fn get_as<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, Error> {
        let reply = self.execute(Command::get(key))?;
        if reply.found() { reply.result().map(Some) } else { Ok(None) }
    }

    /// The value of a key, byte for byte as it was stored.
    pub fn get_raw(&mut self, key: &str) -> Result<Option<Box<RawValue>>, Error> {
        let reply = self.execute(Command::get(key))?;
        Ok(reply.found().then(|| reply.result_raw()))
    }

    /// The value of a key at the consistency asked for.
    pub fn get_at(&mut self, key: &str, consistency: Consistency) -> Result<Option<Value>, Error> {
        let reply = self.execute(Command::get(key).plain("consistency", &consistency))?;
        if reply.found() { reply.result().map(Some) } else { Ok(None) }
    }

    /// The value of a key with its version.
    pub fn get_versioned(&mut self, key: &str) -> Result<Option<Versioned>, Error> {
        let reply = self.execute(Command::get(key).plain("with_version", &true))?;
        if !reply.found() {
            return Ok(None);
        }
        let version =
            reply.version().ok_or_else(|| Error::Decode("the reply has no version".into()))?.to_owned();
        Ok(Some(Versioned { value: reply.result_raw(), version }))
    }

    /// Removes a key; true if it existed.
    pub fn delete(&mut self, key: &str) -> Result<bool, Error> {
        self.result(Command::new("DELETE").key(key))
    }

    /// Removes a key with optional fields; true if it existed.
    pub fn delete_with(&mut self, key: &str, options: &DeleteOptions) -> Result<bool, Error> {
        self.result(options.apply(Command::new("DELETE").key(key)))
    }

    /// Whether a key exists.
    pub fn exists(&mut self, key: &str) -> Result<bool, Error> {
        self.result(Command::new("EXISTS").key(key))
    }

    /// Adds to an integer, which counts as 0 when absent; gives the new one.
    pub fn incr(&mut self, key: &str, amount: i64) -> Result<i64, Error> {
        self.result(Command::incr(key, amount))
    }

    /// Stores many values, all or none; gives the number of distinct keys. The last value of a repeated key wins.
    pub fn bulk_set<K, V, I>(&mut self, items: I) -> Result<u64, Error>
    where
        K: AsRef<str>,
        V: Serialize,
        I: IntoIterator<Item = (K, V)>,
    {
        self.result(Command::bulk_set(items)?)
    }

    /// The values of many keys, one consistent snapshot; `null` for a key that does not exist.
    pub fn bulk_get<K: AsRef<str>>(&mut self, keys: &[K]) -> Result<Map<String, Value>, Error> {
        self.result(Command::new("BULK_GET").keys(keys))
    }

    /// Removes many keys, all or none; gives the number that existed.
    pub fn bulk_delete<K: AsRef<str>>(&mut self, keys: &[K]) -> Result<u64, Error> {
        self.result(Command::new("BULK_DELETE").keys(keys))
    }

    /// Lets a key expire after a time of 1 ms or more; false when it does not exist.
    pub fn expire(&mut self, key: &str, ttl: Duration) -> Result<bool, Error> {
        self.result(Command::new("EXPIRE").key(key).plain("ttl_ms", &ttl_ms(ttl)))
    }

    /// What remains of a key's life.
    pub fn ttl(&mut self, key: &str) -> Result<Ttl, Error> {
        Ok(match self.result::<i64>(Command::new("TTL").key(key))? {
            -2 => Ttl::Absent,
            ms => u64::try_from(ms).map_or(Ttl::Forever, |ms| Ttl::Left(Duration::from_millis(ms))),
        })
    }

    /// Takes the time to live off a key; false when it had none.
    pub fn persist(&mut self, key: &str) -> Result<bool, Error> {
        self.result(Command::new("PERSIST").key(key))
    }

    /// Removes every key that begins with a prefix, in slices and not atomically; gives the number.
    pub fn delete_prefix(&mut self, prefix: &str) -> Result<u64, Error> {
        self.result(Command::new("DELETE_PREFIX").text("prefix", prefix))
    }

    /// Goes through keys page by page; see [`ScanOptions`].
    ///
    /// ```no_run
    /// # let mut client = strand_client::Client::connect("127.0.0.1:8000")?;
    /// for item in client.scan(strand_client::ScanOptions::default().prefix("user:")) {
    ///     println!("{}", item?.key);
    /// }
    /// # Ok::<(), strand_client::Error>(())
    /// ```
    pub fn scan(&mut self, options: ScanOptions) -> Scan<'_> {
        Scan::new(self, options)
    }
}

/// Commands of data, as a pipeline takes them too.
impl Command {
    /// SET.
    pub fn set<V: Serialize + ?Sized>(key: &str, value: &V) -> Result<Self, Error> {
        Self::new("SET").key(key).field("value", value)
    }

    /// GET.
    pub fn get(key: &str) -> Self {
        Self::new("GET").key(key)
    }

    /// INCR.
    pub fn incr(key: &str, amount: i64) -> Self {
        Self::new("INCR").key(key).plain("amount", &amount)
    }

    /// BULK_SET.
    pub fn bulk_set<K: AsRef<str>, V: Serialize>(
        items: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, Error> {
        let mut text = vec![b'['];
        for (key, value) in items {
            if text.len() > 1 {
                text.push(b',');
            }
            serde_json::to_writer(&mut text, &(key.as_ref(), value))
                .map_err(|error| Error::Encode(error.to_string()))?;
        }
        text.push(b']');
        Ok(Self::new("BULK_SET").member("items", |body| body.extend_from_slice(&text)))
    }

    pub(crate) fn keys<K: AsRef<str>>(self, keys: &[K]) -> Self {
        let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
        self.plain("keys", &keys)
    }
}
