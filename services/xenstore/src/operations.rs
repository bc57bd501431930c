//! What each operation does, once its payload was read.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use proto::xenstore::PAYLOAD_MAX;

use crate::error::Error;
use crate::path::Path;
use crate::permissions::{Actor, OWN, Permissions, READ, WRITE};
use crate::quota::Quota;
use crate::store::{Effects, Fired, Store};
use crate::transaction::{Change, Transaction, View};
use crate::tree::Content;
use crate::watch::{TOKEN_MAX, Target, Watch, WatchName, role_number};
use crate::wire::Request;

/// A node that the actor may access in the way needed.
///
/// A missing node is [`Error::NotFound`] only to those who have that access to its nearest ancestor.
fn find(view: &mut View<'_>, actor: Actor, path: &Path, needed: u8) -> Result<Content, Error> {
    let may = |path: &Path, content: &Content| actor.access(path, &content.permissions) & needed == needed;
    match view.get(path) {
        Some(content) if may(path, &content) => Ok(content),
        Some(_) => Err(Error::Access),
        None => match view.nearest(path) {
            Some((ancestor, content)) if may(&ancestor, &content) => Err(Error::NotFound),
            _ => Err(Error::Access),
        },
    }
}

fn ok() -> Result<Vec<u8>, Error> {
    Ok(Vec::from(b"OK\0"))
}

fn with_nul(text: String) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    bytes.push(0);
    bytes
}

/// Names of a directory's children, each ended by NUL.
fn list(view: &mut View<'_>, actor: Actor, path: &Path) -> Result<Vec<u8>, Error> {
    find(view, actor, path, READ)?;
    let mut names = Vec::new();
    for name in view.children(path) {
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    Ok(names)
}

/// One part of a directory: generation, names from the offset on, and an empty name at the very end.
fn list_part(view: &mut View<'_>, actor: Actor, path: &Path, offset: usize) -> Result<Vec<u8>, Error> {
    let names = list(view, actor, path)?;
    let mut reply = with_nul(alloc::format!("{}", view.children_generation(path)));
    let rest = names.get(offset..).unwrap_or_default();
    let room = PAYLOAD_MAX - reply.len() - 1;
    let part = match rest.get(..room) {
        None => rest,
        Some(most) => {
            let end = most.iter().rposition(|&byte| byte == 0).map_or(0, |last| last + 1);
            rest.get(..end).unwrap_or_default()
        }
    };
    reply.extend_from_slice(part);
    if part.len() == rest.len() {
        reply.push(0);
    }
    Ok(reply)
}

impl Store {
    /// Runs a request that is not the end of a transaction.
    pub(crate) fn execute(
        &mut self,
        channel: u32,
        actor: Actor,
        request: &Request<'_>,
        mut transaction: Option<&mut Transaction>,
        effects: &mut Effects,
    ) -> Result<Vec<u8>, Error> {
        if let Some(transaction) = &transaction
            && !actor.is_privileged()
        {
            let (domid, size) = (actor.domid, transaction.size());
            let limit = self.limits.transaction_nodes;
            if !self.violations.check(domid, Quota::TransactionNodes, size, limit) {
                return Err(Error::NoSpace);
            }
            self.check_room(domid, self.held(channel) + transaction.bytes(), 0, 1)?;
        }
        let resolve = |text: &str| Path::resolve(text, &actor.home());
        if request.is_change() {
            return self.change(channel, actor, request, transaction, effects);
        }
        let mut view = View { tree: &mut self.tree, transaction: transaction.as_deref_mut() };
        match *request {
            Request::Read { path } => {
                find(&mut view, actor, &resolve(path)?, READ).map(|content| content.value.to_vec())
            }
            Request::Directory { path } => {
                let names = list(&mut view, actor, &resolve(path)?)?;
                if names.len() > PAYLOAD_MAX { Err(Error::TooBig) } else { Ok(names) }
            }
            Request::DirectoryPart { path, offset } => list_part(&mut view, actor, &resolve(path)?, offset),
            Request::GetPermissions { path } => find(&mut view, actor, &resolve(path)?, READ)
                .map(|content| content.permissions.to_wire().into_bytes()),
            Request::Watch { path, token } => {
                effects.first_event = Some(self.add_watch(channel, actor, path, token)?);
                ok()
            }
            Request::Unwatch { path, token } => self.remove_watch(channel, actor, path, token),
            Request::ResetWatches => self.reset(channel, actor),
            Request::TransactionStart if transaction.is_some() => Err(Error::Busy),
            Request::TransactionStart => self.start_transaction(channel, actor),
            Request::GetDomainPath { domid } => Ok(with_nul(String::from(Path::home(domid).as_str()))),
            Request::IsDomainIntroduced { domid } => {
                let is_introduced = domid == 0 || self.domains.contains_key(&domid);
                Ok(Vec::from(if is_introduced { b"T\0" } else { b"F\0" }))
            }
            // Changes and the end of a transaction were dealt with before.
            _ => Err(Error::Invalid),
        }
    }

    /// Bytes that a channel holds besides nodes.
    fn held(&self, channel: u32) -> usize {
        self.connections.get(&channel).map_or(0, |connection| connection.bytes())
    }

    /// Runs a request that changes the tree.
    fn change(
        &mut self,
        channel: u32,
        actor: Actor,
        request: &Request<'_>,
        transaction: Option<&mut Transaction>,
        effects: &mut Effects,
    ) -> Result<Vec<u8>, Error> {
        let held = self.held(channel) + transaction.as_ref().map_or(0, |t| t.bytes());
        let resolve = |text: &str| Path::resolve(text, &actor.home());
        let fired = match *request {
            Request::Write { path, value } => {
                self.write(actor, held, &resolve(path)?, Some(value), transaction)?
            }
            Request::Mkdir { path } => self.write(actor, held, &resolve(path)?, None, transaction)?,
            Request::SetPermissions { path, entries } => {
                self.set_permissions(actor, held, &resolve(path)?, entries, transaction)?
            }
            Request::Remove { path } => self.remove(actor, &resolve(path)?, transaction)?,
            _ => return Err(Error::Invalid),
        };
        effects.fired = fired;
        ok()
    }

    /// WRITE (with a value) and MKDIR (without: an existing node stays as it is).
    fn write(
        &mut self,
        actor: Actor,
        held: usize,
        path: &Path,
        value: Option<&[u8]>,
        transaction: Option<&mut Transaction>,
    ) -> Result<Vec<Fired>, Error> {
        let mut transaction = transaction;
        let mut view = View { tree: &mut self.tree, transaction: transaction.as_deref_mut() };
        let old = match find(&mut view, actor, path, WRITE) {
            Ok(content) => Some(content),
            Err(Error::NotFound) => None,
            Err(error) => return Err(error),
        };
        if old.is_some() && value.is_none() {
            return Ok(Vec::new());
        }
        // The node itself first, then the ancestors that are missing too.
        let mut missing = Vec::new();
        let permissions = match &old {
            Some(content) => content.permissions.clone(),
            None => {
                let (nearest, content) = view.nearest(path).ok_or(Error::NotFound)?;
                let mut ancestor = path.parent();
                while let Some(path) = ancestor.filter(|path| *path != nearest) {
                    ancestor = path.parent();
                    missing.push(path);
                }
                match actor.role {
                    proto::xenstore::Role::Guest => content.permissions.owned_by(actor.domid),
                    _ => content.permissions,
                }
            }
        };
        let account = match (&old, actor.is_privileged()) {
            (Some(content), true) => content.account,
            (None, true) => permissions.owner(),
            (_, false) => actor.domid,
        };
        let value = value.unwrap_or_default();
        let content = Content { value: Rc::from(value), permissions: permissions.clone(), account };
        let empty = Content { value: Rc::from([]), permissions, account };
        if !actor.is_privileged() {
            if !self.violations.check(actor.domid, Quota::NodeSize, value.len(), self.limits.node_size) {
                return Err(Error::NoSpace);
            }
            let is_paid = old.as_ref().is_some_and(|content| content.account == account);
            let paid = old.as_ref().filter(|_| is_paid).map_or(0, |content| content.cost(path));
            let bytes = content.cost(path) + missing.iter().map(|path| empty.cost(path)).sum::<usize>();
            let nodes = missing.len() + usize::from(!is_paid);
            let open = transaction.as_ref().map_or(0, |transaction| transaction.new_nodes);
            let more_nodes = if nodes > 0 { open.saturating_add_unsigned(nodes) } else { 0 };
            self.check_room(actor.domid, held, more_nodes, bytes as isize - paid as isize)?;
        }
        let before = old.map(|content| content.permissions);
        let after = Some(content.permissions.clone());
        let mut view = View { tree: &mut self.tree, transaction };
        for ancestor in missing.iter().rev() {
            view.put(ancestor, Some(empty.clone()));
        }
        view.put(path, Some(content));
        Ok(changed(&mut view, path, before, after))
    }

    fn set_permissions(
        &mut self,
        actor: Actor,
        held: usize,
        path: &Path,
        entries: &str,
        transaction: Option<&mut Transaction>,
    ) -> Result<Vec<Fired>, Error> {
        let permissions = Permissions::parse(entries.split('\0'))?;
        let mut transaction = transaction;
        let mut view = View { tree: &mut self.tree, transaction: transaction.as_deref_mut() };
        let old = find(&mut view, actor, path, OWN)?;
        let mut account = old.account;
        if actor.is_privileged() {
            account = permissions.owner();
        } else {
            if permissions.owner() != old.permissions.owner() {
                return Err(Error::NotPermitted);
            }
            let (len, limit) = (permissions.len(), self.limits.permissions);
            if !self.violations.check(actor.domid, Quota::Permissions, len, limit) {
                return Err(Error::NoSpace);
            }
        }
        let content = Content { value: old.value.clone(), permissions: permissions.clone(), account };
        if !actor.is_privileged() {
            let growth = content.cost(path) as isize - old.cost(path) as isize;
            self.check_room(actor.domid, held, 0, growth)?;
        }
        let mut view = View { tree: &mut self.tree, transaction };
        view.put(path, Some(content));
        Ok(changed(&mut view, path, Some(old.permissions), Some(permissions)))
    }

    fn remove(
        &mut self,
        actor: Actor,
        path: &Path,
        transaction: Option<&mut Transaction>,
    ) -> Result<Vec<Fired>, Error> {
        let mut view = View { tree: &mut self.tree, transaction };
        if path.is_root() {
            return Err(Error::Invalid);
        }
        match find(&mut view, actor, path, WRITE) {
            Ok(_) => {}
            // As Xen has it: removing what is not there succeeds where it could have been.
            Err(Error::NotFound) => {
                let has_parent = path.parent().is_some_and(|parent| view.get(&parent).is_some());
                return if has_parent { Ok(Vec::new()) } else { Err(Error::NotFound) };
            }
            Err(error) => return Err(error),
        }
        let mut fired = Vec::new();
        Self::remove_subtree(&mut view, path, &mut fired);
        Ok(fired)
    }

    /// Removes a node, if it is there, and all below it.
    pub(crate) fn remove_subtree(view: &mut View<'_>, root: &Path, fired: &mut Vec<Fired>) {
        let mut rest = Vec::from([root.clone()]);
        while let Some(path) = rest.pop() {
            let Some(content) = view.get(&path) else { continue };
            rest.extend(view.children(&path).iter().map(|name| path.child(name)));
            view.put(&path, None);
            let change = Change { is_exact: path != *root, path };
            match &mut view.transaction {
                Some(transaction) => transaction.changes.push(change),
                None => fired.push(Fired { change, before: Some(content.permissions), after: None }),
            }
        }
    }

    fn start_transaction(&mut self, channel: u32, actor: Actor) -> Result<Vec<u8>, Error> {
        let connection = self.connections.get_mut(&channel).ok_or(Error::Invalid)?;
        let open = connection.transactions.len() + 1;
        if !actor.is_privileged()
            && !self.violations.check(actor.domid, Quota::Transactions, open, self.limits.transactions)
        {
            return Err(Error::NoSpace);
        }
        let transaction = Transaction::new(actor, self.tree.open_snapshot());
        Ok(with_nul(alloc::format!("{}", connection.add_transaction(transaction))))
    }

    /// Applies a transaction, or refuses it as a whole.
    pub(crate) fn commit(
        &mut self,
        actor: Actor,
        transaction: &mut Transaction,
    ) -> Result<Vec<Fired>, Error> {
        if transaction.has_conflict(&self.tree) {
            return Err(Error::Again);
        }
        if !actor.is_privileged() {
            let (nodes, bytes) = transaction.growth(&self.tree, actor.domid);
            self.check_room(actor.domid, 0, nodes, bytes)?;
        }
        let mut permissions = BTreeMap::new();
        for (path, content) in core::mem::take(&mut transaction.overlay) {
            let after = content.as_ref().map(|content| content.permissions.clone());
            let before = self.tree.put(&path, content).map(|content| content.permissions);
            permissions.insert(path, (before, after));
        }
        let mut seen = BTreeSet::new();
        let mut fired = Vec::new();
        for change in core::mem::take(&mut transaction.changes) {
            let (before, after) = permissions.get(&change.path).cloned().unwrap_or_default();
            // Created and removed again in the transaction: nobody else ever saw it.
            let existed = before.is_some() || after.is_some();
            if existed && seen.insert((change.path.clone(), change.is_exact)) {
                fired.push(Fired { change, before, after });
            }
        }
        Ok(fired)
    }

    fn add_watch(&mut self, channel: u32, actor: Actor, path: &str, token: &[u8]) -> Result<u64, Error> {
        let target = Target::parse(path, actor)?;
        let name: WatchName = (role_number(actor.role), Rc::from(target.index()), Rc::from(token));
        if token.len() > TOKEN_MAX {
            return Err(Error::TooBig);
        }
        let held = self.held(channel);
        let connection = self.connections.get_mut(&channel).ok_or(Error::Invalid)?;
        if connection.watches.contains_key(&name) {
            return Err(Error::Exists);
        }
        let count = connection.watches.len() + 1;
        let watch = Watch { channel, actor, target, text: Rc::from(path), token: name.2.clone() };
        let cost = watch.cost();
        if !actor.is_privileged() {
            if !self.violations.check(actor.domid, Quota::Watches, count, self.limits.watches) {
                return Err(Error::TooBig);
            }
            self.check_room(actor.domid, held, 0, cost as isize)?;
        }
        let id = self.watches.insert(watch);
        if let Some(connection) = self.connections.get_mut(&channel) {
            connection.watch_bytes += cost;
            connection.watches.insert(name, id);
        }
        Ok(id)
    }

    fn remove_watch(
        &mut self,
        channel: u32,
        actor: Actor,
        path: &str,
        token: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let target = Target::parse(path, actor)?;
        let name: WatchName = (role_number(actor.role), Rc::from(target.index()), Rc::from(token));
        let connection = self.connections.get_mut(&channel).ok_or(Error::Invalid)?;
        let id = connection.watches.remove(&name).ok_or(Error::NotFound)?;
        connection.drop_events(id);
        if let Some(watch) = self.watches.remove(id) {
            connection.watch_bytes = connection.watch_bytes.saturating_sub(watch.cost());
        }
        ok()
    }

    /// A guest that starts anew (kexec, resume) gets rid of its old life.
    fn reset(&mut self, channel: u32, actor: Actor) -> Result<Vec<u8>, Error> {
        let connection = self.connections.get_mut(&channel).ok_or(Error::Invalid)?;
        let role = role_number(actor.role);
        let (gone, kept) =
            core::mem::take(&mut connection.watches).into_iter().partition(|(n, _)| n.0 == role);
        connection.watches = kept;
        let gone: BTreeMap<WatchName, u64> = gone;
        for id in gone.into_values() {
            connection.drop_events(id);
            if let Some(watch) = self.watches.remove(id) {
                connection.watch_bytes = connection.watch_bytes.saturating_sub(watch.cost());
            }
        }
        let (ended, open) = core::mem::take(&mut connection.transactions)
            .into_iter()
            .partition(|(_, transaction)| transaction.actor.role == actor.role);
        connection.transactions = open;
        let ended: BTreeMap<u32, Transaction> = ended;
        for transaction in ended.into_values() {
            self.tree.close_snapshot(transaction.snapshot);
        }
        ok()
    }
}

/// Notes the change of a node: in the transaction, or to fire now.
fn changed(
    view: &mut View<'_>,
    path: &Path,
    before: Option<Permissions>,
    after: Option<Permissions>,
) -> Vec<Fired> {
    let change = Change { path: path.clone(), is_exact: false };
    match &mut view.transaction {
        Some(transaction) => {
            transaction.changes.push(change);
            Vec::new()
        }
        None => Vec::from([Fired { change, before, after }]),
    }
}
