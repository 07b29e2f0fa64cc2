//! The general path: cuts the line into members, looks the command up and hands its fields to the command's family.
//!
//! Order of refusals: malformed JSON, repeated fields, the id, the command, unknown fields, missing fields, ill-typed
//! ones. It never looks at a value's content beyond its type, its size and what the command must know.

use super::fields::{Fields, at_of, ill_typed, shown};
use super::refusal::{Problem, Refusal};
use super::{Command, Request, admin, batch, data, search};
use crate::code::Code;
use crate::commands::{self, COMMANDS, CommandSpec, FIELDS_MAX};
use crate::json::{self, Fault, FaultKind, Members};
use crate::limits::{BATCH_ENVELOPE_DEPTH, Limits};
use smallvec::SmallVec;
use std::borrow::Cow;

/// One member of the request object.
struct Member<'a> {
    name: Cow<'a, str>,
    value: &'a [u8],
}

/// More members than any command has fields; a line with more is refused without reading on.
const MEMBERS_MAX: usize = 32;
const _: () = assert!(MEMBERS_MAX > FIELDS_MAX + commands::COMMON.len() + 1, "every legal request fits");

type MemberList<'a> = SmallVec<[Member<'a>; FIELDS_MAX]>;

pub(super) fn parse<'a>(line: &'a [u8], limits: &Limits) -> Result<Request<'a>, Refusal<'a>> {
    let mut id = None;
    let request = split(line, limits, &mut id).and_then(|members| interpret(line, &members, limits));
    match request {
        Ok((timeout_ms, command)) => Ok(Request { id, timeout_ms, command }),
        Err(problem) => Err(problem.with_id(id)),
    }
}

/// Cuts the line into members, and gives the id out as soon as it is read. A line that is no JSON has no id: what it
/// seems to say of one is not to be believed. A line that is only nested too deep keeps the id that came before.
fn split<'a>(line: &'a [u8], limits: &Limits, id: &mut Option<&'a [u8]>) -> Result<MemberList<'a>, Problem> {
    let mut members = MemberList::new();
    let mut problem = None;
    let mut walk = Members::new(line, limits.value_depth_max());
    while let Some(name) = walk.name() {
        let name = name.map_err(|fault| unreadable(fault, limits, id))?;
        let Ok(name) = name.decode() else {
            problem = Some(Problem::bad("a field's name holds a lone surrogate".to_owned()));
            walk.value().map_err(|fault| unreadable(fault, limits, id))?;
            continue;
        };
        let envelope = if name == "items" { BATCH_ENVELOPE_DEPTH } else { 0 };
        walk.set_depth_max(limits.value_depth_max() + envelope);
        let value = walk.value().map_err(|fault| unreadable(fault, limits, id))?;
        if members.len() == MEMBERS_MAX {
            return Err(Problem::bad(format!("a request has at most {MEMBERS_MAX} fields")));
        }
        if members.iter().any(|member| member.name == name) {
            // The rest of the line may still bring the id, or be malformed, which goes first.
            problem.get_or_insert_with(|| Problem::bad(format!("give field {} only once", shown(&name))));
            continue;
        }
        if name == "id" {
            match check_id(value, limits) {
                Ok(()) => *id = Some(value),
                Err(bad) => problem = problem.or(Some(bad)),
            }
        }
        members.push(Member { name, value });
    }
    problem.map_or(Ok(members), Err)
}

/// Why the line cannot be read on, and what becomes of the id.
fn unreadable(fault: Fault, limits: &Limits, id: &mut Option<&[u8]>) -> Problem {
    if fault.kind != FaultKind::TooDeep {
        *id = None;
    }
    Problem::json(fault, 0, limits)
}

fn check_id(token: &[u8], limits: &Limits) -> Result<(), Problem> {
    if token.first() != Some(&b'"') && !json::is_integer(token) {
        let kind = json::kind_of(token);
        return Err(Problem::bad(format!("field \"id\" must be a string or an integer, not {kind}")));
    }
    if token.len() > limits.id_bytes_max {
        return Err(Problem::too_large("field \"id\"", limits.id_bytes_max, "bytes"));
    }
    Ok(())
}

fn interpret<'a>(
    line: &'a [u8],
    members: &[Member<'a>],
    limits: &Limits,
) -> Result<(Option<u32>, Command<'a>), Problem> {
    let spec = find_command(members)?;
    let mut values = [None; FIELDS_MAX];
    let mut timeout = None;
    for member in members {
        match (&*member.name, spec.field(&member.name)) {
            (_, Some((position, _))) => values[position] = Some(member.value),
            ("timeout_ms", None) => timeout = Some(member.value),
            ("id" | "command", None) => {}
            (name, None) => return Err(unknown_field(spec, name, at_of(line, member.value))),
        }
    }
    for (field, value) in spec.fields.iter().zip(&values) {
        if field.required && value.is_none() {
            return Err(Problem::bad(format!(
                "{} needs field \"{}\": {}",
                spec.name, field.name, field.summary
            )));
        }
    }
    let timeout_ms = timeout.map(|token| check_timeout(token, limits)).transpose()?;
    Ok((timeout_ms, dispatch(&Fields { spec, values, limits, line })?))
}

fn find_command(members: &[Member<'_>]) -> Result<&'static CommandSpec, Problem> {
    let Some(member) = members.iter().find(|member| member.name == "command") else {
        let near = commands::nearest("command", members.iter().map(|member| &*member.name));
        let near = near.map(|name| format!(" instead of {}", shown(name))).unwrap_or_default();
        return Err(Problem::bad(format!("give the command's name in field \"command\"{near}")));
    };
    let text = json::Scanner::new(member.value).string().ok().and_then(|text| text.decode().ok());
    let Some(name) = text else {
        let kind = json::kind_of(member.value);
        return Err(Problem::bad(format!(
            "field \"command\" must be a command's name in a string, not {kind}"
        )));
    };
    commands::find(&name).ok_or_else(|| {
        let near = commands::nearest(&name, COMMANDS.iter().map(|spec| spec.name));
        let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        let message = format!("there is no command {}{near}", shown(&name));
        Problem { code: Code::UnknownCommand, message, limit: None }
    })
}

fn unknown_field(spec: &CommandSpec, name: &str, at: usize) -> Problem {
    let hint = match commands::nearest(name, spec.field_names()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("it takes {}", spec.field_names().collect::<Vec<_>>().join(", ")),
    };
    Problem::bad(format!("{} has no field {} (its value is at byte {at}); {hint}", spec.name, shown(name)))
}

fn check_timeout(token: &[u8], limits: &Limits) -> Result<u32, Problem> {
    let given = json::unsigned(token).and_then(|ms| u32::try_from(ms).ok());
    given.filter(|ms| (1..=limits.timeout_ms_max).contains(ms)).ok_or_else(|| {
        ill_typed("timeout_ms", &format!("an integer from 1 to {}", limits.timeout_ms_max), token)
    })
}

fn dispatch<'a>(fields: &Fields<'a, '_>) -> Result<Command<'a>, Problem> {
    Ok(match fields.spec.name {
        "PING" => Command::Ping,
        "HELLO" => Command::Hello(admin::hello(fields)?),
        "SET" => Command::Set(data::set(fields)?),
        "GET" => Command::Get(data::get(fields)?),
        "DELETE" => Command::Delete(data::delete(fields)?),
        "EXISTS" => Command::Exists(data::key_read(fields)?),
        "INCR" => Command::Incr(data::incr(fields)?),
        "BULK_SET" => Command::BulkSet(batch::bulk_set(fields)?),
        "BULK_GET" => Command::BulkGet(batch::bulk_get(fields)?),
        "BULK_DELETE" => Command::BulkDelete(batch::bulk_delete(fields)?),
        "EXPIRE" => Command::Expire(data::expire(fields)?),
        "TTL" => Command::Ttl(data::key_read(fields)?),
        "PERSIST" => Command::Persist(data::persist(fields)?),
        "SCAN" => Command::Scan(data::scan(fields)?),
        "DELETE_PREFIX" => Command::DeletePrefix(data::delete_prefix(fields)?),
        "SEARCH" => Command::Search(Box::new(search::search(fields)?)),
        "SEMANTIC_SEARCH" => Command::SemanticSearch(Box::new(search::semantic(fields)?)),
        "HYBRID_SEARCH" => Command::HybridSearch(Box::new(search::hybrid(fields)?)),
        "CREATE_INDEX" => Command::CreateIndex(search::create_index(fields)?),
        "QUERY_INDEX" => Command::QueryIndex(Box::new(search::query_index(fields)?)),
        "LIST_INDEXES" => Command::ListIndexes,
        "DROP_INDEX" => Command::DropIndex(search::drop_index(fields)?),
        "INFO" => Command::Info,
        "CLUSTER" => Command::Cluster,
        "SNAPSHOT" => Command::Snapshot,
        "ADD_NODE" => Command::AddNode(admin::add_node(fields)?),
        "REMOVE_NODE" => Command::RemoveNode(fields.needed_text("node")?),
        "TRANSFER_LEADER" => Command::TransferLeader(admin::transfer_leader(fields)?),
        "BALANCE" => Command::Balance,
        "SHUTDOWN" => Command::Shutdown,
        name => unreachable!("command {name} is in the table and not in the parser"),
    })
}
