//! The store against a model that is a plain map, copied whole for every transaction.
//!
//! What must hold: outside of transactions every answer is the model's; inside, every answer is that of
//! the copy taken at the start; a commit that succeeds is equal to running the transaction's requests at
//! that moment, with the same answers (serialisability); a commit fails only if something changed.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use proptest::prelude::*;
use proto::text::Bytes;
use proto::xenstore::{Message, Role};

use crate::quota::Limits;
use crate::store::Store;
use crate::wire;

/// Value and permissions; the first entry is the owner's.
type Tree = BTreeMap<String, (String, Vec<(char, u32)>)>;

#[derive(Debug, Clone)]
enum Op {
    Read(String),
    Directory(String),
    GetPermissions(String),
    Write(String, String),
    Mkdir(String),
    Remove(String),
    SetPermissions(String, Vec<(char, u32)>),
}

/// `None`: the toolstack.
type Who = Option<u32>;

#[derive(Debug, Clone)]
enum Step {
    Direct(Who, Op),
    Start(usize),
    Inside(usize, Op),
    End(usize, bool),
}

fn up(path: &str) -> Option<&str> {
    if path == "/" {
        return None;
    }
    path.rsplit_once('/').map(|(parent, _)| if parent.is_empty() { "/" } else { parent })
}

fn may(who: Who, permissions: &[(char, u32)], letters: &str) -> bool {
    let Some(domid) = who else { return true };
    if permissions[0].1 == domid {
        return true;
    }
    let listed = permissions[1..].iter().find(|p| p.1 == domid).unwrap_or(&permissions[0]);
    letters.contains(listed.0)
}

fn check(tree: &Tree, who: Who, path: &str, letters: &str) -> Result<(), &'static str> {
    let (mut at, mut missing) = (path, "EEXIST");
    loop {
        if let Some((_, permissions)) = tree.get(at) {
            let allowed = may(who, permissions, letters);
            return match (allowed, missing) {
                (false, _) => Err("EACCES"),
                (true, "EEXIST") => Ok(()),
                (true, _) => Err("ENOENT"),
            };
        }
        missing = "ENOENT";
        at = up(at).unwrap();
    }
}

fn below(path: &str) -> String {
    if path == "/" { "/".to_string() } else { format!("{path}/") }
}

/// Runs one operation on a tree.
fn run(tree: &mut Tree, who: Who, op: &Op) -> Result<String, &'static str> {
    let done = || Ok("OK\0".to_string());
    match op {
        Op::Read(path) => check(tree, who, path, "rb").map(|()| tree[path].0.clone()),
        Op::GetPermissions(path) => check(tree, who, path, "rb")
            .map(|()| tree[path].1.iter().map(|(c, d)| format!("{c}{d}\0")).collect()),
        Op::Directory(path) => {
            check(tree, who, path, "rb")?;
            let prefix = below(path);
            let names: BTreeSet<&str> = tree
                .keys()
                .filter_map(|key| key.strip_prefix(&prefix))
                .filter(|rest| !rest.is_empty() && !rest.contains('/'))
                .collect();
            Ok(names.into_iter().map(|name| format!("{name}\0")).collect())
        }
        Op::Write(path, _) | Op::Mkdir(path) => {
            match check(tree, who, path, "wb") {
                Ok(()) => {
                    if let Op::Write(_, value) = op {
                        tree.get_mut(path).unwrap().0 = value.clone();
                    }
                    return done();
                }
                Err("ENOENT") => {}
                Err(error) => return Err(error),
            }
            let mut chain = Vec::from([path.as_str()]);
            while !tree.contains_key(*chain.last().unwrap()) {
                let parent = up(chain.last().unwrap()).unwrap();
                chain.push(parent);
            }
            let mut permissions = tree[chain.pop().unwrap()].1.clone();
            if let Some(domid) = who {
                permissions[0].1 = domid;
            }
            for new in &chain {
                tree.insert(new.to_string(), (String::new(), permissions.clone()));
            }
            if let Op::Write(_, value) = op {
                tree.get_mut(path).unwrap().0 = value.clone();
            }
            done()
        }
        Op::Remove(path) => {
            if path == "/" {
                return Err("EINVAL");
            }
            match check(tree, who, path, "wb") {
                Err("ENOENT") if tree.contains_key(up(path).unwrap()) => return done(),
                other => other?,
            }
            let prefix = below(path);
            tree.retain(|key, _| key != path && !key.starts_with(&prefix));
            done()
        }
        Op::SetPermissions(path, permissions) => {
            check(tree, who, path, "")?;
            if who.is_some_and(|_| permissions[0].1 != tree[path].1[0].1) {
                return Err("EPERM");
            }
            tree.get_mut(path).unwrap().1 = permissions.clone();
            done()
        }
    }
}

fn message(who: Who, tx: u32, op: &Op) -> Message {
    let perms = |list: &[(char, u32)]| list.iter().map(|(c, d)| format!("{c}{d}\0")).collect::<String>();
    let (op, payload) = match op {
        Op::Directory(path) => (1, format!("{path}\0")),
        Op::Read(path) => (2, format!("{path}\0")),
        Op::GetPermissions(path) => (3, format!("{path}\0")),
        Op::Write(path, value) => (11, format!("{path}\0{value}")),
        Op::Mkdir(path) => (12, format!("{path}\0")),
        Op::Remove(path) => (13, format!("{path}\0")),
        Op::SetPermissions(path, list) => (14, format!("{path}\0{}", perms(list))),
    };
    raw(who, tx, op, &payload)
}

fn raw(who: Who, tx: u32, op: u32, payload: &str) -> Message {
    let role = if who.is_none() { Role::Toolstack } else { Role::Guest };
    Message { role, op, id: 0, tx, payload: Bytes::truncated(payload.as_bytes()) }
}

fn send(store: &mut Store, who: Who, message: &Message) -> Result<String, String> {
    let channel = who.unwrap_or(0) + 1;
    store.request(channel, message);
    let reply = store.peek(channel).unwrap();
    store.pop(channel);
    assert!(store.peek(channel).is_none());
    let text = String::from_utf8(reply.payload.to_vec()).unwrap();
    if reply.op == wire::ERROR { Err(text.trim_end_matches('\0').to_string()) } else { Ok(text) }
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(["a", "b", "a-"].as_slice()), 0..4)
        .prop_map(|names| format!("/{}", names.join("/")))
}

fn permissions() -> impl Strategy<Value = Vec<(char, u32)>> {
    let letter = prop::sample::select(['n', 'r', 'w', 'b'].as_slice());
    prop::collection::vec((letter, 0u32..3), 1..4)
}

fn operation() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => path().prop_map(Op::Read),
        2 => path().prop_map(Op::Directory),
        1 => path().prop_map(Op::GetPermissions),
        4 => (path(), "[x-z]{0,2}").prop_map(|(path, value)| Op::Write(path, value)),
        1 => path().prop_map(Op::Mkdir),
        2 => path().prop_map(Op::Remove),
        2 => (path(), permissions()).prop_map(|(path, list)| Op::SetPermissions(path, list)),
    ]
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![Just(None), Just(Some(1)), Just(Some(2))]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (who(), operation()).prop_map(|(who, op)| Step::Direct(who, op)),
        2 => (0usize..3).prop_map(Step::Start),
        6 => (0usize..3, operation()).prop_map(|(n, op)| Step::Inside(n, op)),
        2 => (0usize..3, any::<bool>()).prop_map(|(n, is_commit)| Step::End(n, is_commit)),
    ]
}

/// The transaction of one client in the model.
struct Open {
    tx: u32,
    tree: Tree,
    done: Vec<(Op, Result<String, String>)>,
    version: usize,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_store_is_its_model(steps in prop::collection::vec(step(), 0..80)) {
        let mut store = Store::new(Limits::default());
        let clients: [Who; 3] = [None, Some(1), Some(2)];
        for client in clients {
            store.attach(client.unwrap_or(0) + 1, client.unwrap_or(9), client.is_none()).unwrap();
        }
        let closed = (String::new(), Vec::from([('n', 0)]));
        let mut tree: Tree = ["/", "/tool", "/vm", "/local", "/local/domain", "/local/domain/0"]
            .map(|path| (path.to_string(), closed.clone()))
            .into_iter()
            .collect();
        let open_root = Op::SetPermissions("/".to_string(), Vec::from([('b', 0)]));
        send(&mut store, None, &message(None, 0, &open_root)).unwrap();
        run(&mut tree, None, &open_root).unwrap();
        let mut version = 0;
        let mut open: [Option<Open>; 3] = [None, None, None];
        for step in steps {
            match step {
                Step::Direct(who, op) => {
                    let expected = run(&mut tree, who, &op).map_err(String::from);
                    prop_assert_eq!(send(&mut store, who, &message(who, 0, &op)), expected, "{:?} {:?}", who, op);
                    version += 1;
                }
                Step::Start(n) if open[n].is_none() => {
                    let id = send(&mut store, clients[n], &raw(clients[n], 0, 6, "\0")).unwrap();
                    let tx = id.trim_end_matches('\0').parse().unwrap();
                    open[n] = Some(Open { tx, tree: tree.clone(), done: Vec::new(), version });
                }
                Step::Inside(n, op) => {
                    let Some(transaction) = &mut open[n] else { continue };
                    let expected = run(&mut transaction.tree, clients[n], &op).map_err(String::from);
                    let answer = send(&mut store, clients[n], &message(clients[n], transaction.tx, &op));
                    prop_assert_eq!(&answer, &expected, "in a transaction: {:?}", op);
                    transaction.done.push((op, answer));
                }
                Step::End(n, is_commit) => {
                    let Some(transaction) = open[n].take() else { continue };
                    let word = if is_commit { "T\0" } else { "F\0" };
                    let answer = send(&mut store, clients[n], &raw(clients[n], transaction.tx, 7, word));
                    if answer.is_ok() && is_commit {
                        for (op, before) in &transaction.done {
                            let now = run(&mut tree, clients[n], op).map_err(String::from);
                            prop_assert_eq!(&now, before, "not serialisable: {:?}", op);
                        }
                        version += 1;
                    } else if is_commit {
                        prop_assert_eq!(answer, Err("EAGAIN".to_string()));
                        prop_assert!(transaction.version < version, "a conflict with nobody");
                    }
                }
                Step::Start(_) => {}
            }
        }
        for (path, (value, _)) in &tree {
            let read = Op::Read(path.clone());
            prop_assert_eq!(send(&mut store, None, &message(None, 0, &read)), Ok(value.clone()));
            let list = Op::Directory(path.clone());
            let expected = run(&mut tree.clone(), None, &list).unwrap();
            prop_assert_eq!(send(&mut store, None, &message(None, 0, &list)), Ok(expected));
        }
        for (domid, usage) in [(1, store.tree.usage(1)), (2, store.tree.usage(2))] {
            prop_assert_eq!(usage.nodes, store.tree.charged_to(domid).len());
        }
    }
}
