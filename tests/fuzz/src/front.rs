//! The rooms of the server's front that stand between received bytes and lines, without its ring, and their target.

#[path = "../../../src/front/connection.rs"]
mod connection;
#[path = "../../../src/front/counters.rs"]
mod counters;
#[path = "../../../src/front/dispatch.rs"]
mod dispatch;
#[path = "../../../src/front/handler.rs"]
mod handler;
#[path = "../../../src/front/input.rs"]
mod input;
#[path = "../../../src/front/order.rs"]
mod order;
#[path = "../../../src/front/output.rs"]
mod output;
#[path = "../../../src/front/reply_line.rs"]
mod reply_line;
#[path = "../../../src/front/settings.rs"]
mod settings;

#[path = "targets/lines.rs"]
pub(crate) mod lines;
