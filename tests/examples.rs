//! The examples of docs/PROTOCOL.md, executed against a fresh server: each block one connection, in order; the last request
//! stops the server.

mod support;
mod transcript;

use support::server::Setup;
use support::timed;

#[test]
fn every_example_of_the_protocol_page_is_true() {
    let _timed = timed("the examples of PROTOCOL.md");
    let setup = Setup::bare("examples").set(&["cores.pin=false"]);
    let server = setup.start();
    let page = include_str!("../docs/PROTOCOL.md");
    let mut different = Vec::new();
    let mut last = String::new();
    for block in transcript::blocks(page) {
        let mut connection = server.connect();
        for exchange in block {
            connection.queue_line(&exchange.request);
            connection.flush().unwrap_or_else(|error| panic!("line {}: {error}", exchange.line));
            let reply =
                connection.receive().unwrap_or_else(|error| panic!("line {}: {error}", exchange.line));
            if !transcript::matches(&exchange.reply, &reply) {
                different.push(format!(
                    "line {}: {}\n  shown:  {}\n  answer: {reply}",
                    exchange.line, exchange.request, exchange.reply
                ));
            }
            last = exchange.request;
        }
    }
    assert!(different.is_empty(), "docs/PROTOCOL.md:\n{}", different.join("\n"));
    assert!(last.contains("SHUTDOWN"), "the page ends with a shutdown, not with {last}");
    let ended = server.wait();
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
}
