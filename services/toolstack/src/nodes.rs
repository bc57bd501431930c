//! The xenstore nodes of a guest, as libxl writes them.
//!
//! A node inherits the permissions of the one above it, so these are set where they change. A guest reads
//! its home and its backends; it owns, and so may write, only what its drivers write: control/shutdown
//! and the like, `data`, and the directories of its own frontends. Sources: Xen's libxl_create.c,
//! libxl_device.c, libxl_disk.c, libxl_nic.c; the guest interface's sections 7.2 to 7.4.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use proto::builder::{DiskSpec, GuestSpec, VifSpec};

use crate::config::{Disk, GuestConfig, Mac, Uuid, Vif};
use crate::store::StoreRequest;

/// Home of a guest.
pub fn home(domid: u32) -> String {
    format!("/local/domain/{domid}")
}

/// The node by which a guest is asked to shut down.
pub fn control_shutdown(domid: u32) -> String {
    format!("/local/domain/{domid}/control/shutdown")
}

/// Nodes that the guest writes.
const GUEST_OWNED: [&str; 11] = [
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "device/suspend/event-channel",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
];

/// Requests under construction.
struct Nodes {
    requests: Vec<StoreRequest>,
    domid: u32,
}

impl Nodes {
    fn write(&mut self, path: String, value: impl Into<String>) {
        self.requests.push(StoreRequest::Write { path, value: value.into() });
    }

    /// A directory that `owner` may write and `reader` read.
    fn directory(&mut self, path: &str, owner: u32, reader: u32) {
        self.write(path.to_owned(), "");
        let permissions = [format!("n{owner}"), format!("r{reader}")].into();
        self.requests.push(StoreRequest::Permit { path: path.to_owned(), permissions });
    }

    /// A node that the guest alone may write, and only domain 0 read besides it.
    fn guest_owned(&mut self, path: String) {
        self.write(path.clone(), "");
        self.requests.push(StoreRequest::Permit { path, permissions: [format!("n{}", self.domid)].into() });
    }

    /// A device's two directories: the guest writes the first, reads the second.
    fn device(&mut self, kind: &str, device: u32, front: &[(&str, &str)], back: &[(&str, &str)]) {
        let domid = self.domid;
        let frontend = format!("/local/domain/{domid}/device/{kind}/{device}");
        let backend = format!("/local/domain/0/backend/{kind}/{domid}/{device}");
        self.directory(&frontend, domid, 0);
        self.directory(&backend, 0, domid);
        let common = [("backend", backend.as_str()), ("backend-id", "0"), ("state", "1")];
        for (name, value) in common.iter().chain(front) {
            self.write(format!("{frontend}/{name}"), *value);
        }
        let id = domid.to_string();
        let common = [("frontend", frontend.as_str()), ("frontend-id", &id), ("online", "1"), ("state", "1")];
        for (name, value) in common.iter().chain(back) {
            self.write(format!("{backend}/{name}"), *value);
        }
    }

    fn disk(&mut self, disk: &Disk, spec: &DiskSpec) {
        let number = disk.device.to_string();
        let front = [
            ("virtual-device", number.as_str()),
            ("device-type", "disk"),
            ("trusted", if disk.is_trusted { "1" } else { "0" }),
        ];
        let back = [
            ("params", spec.volume.as_str()),
            ("type", "phy"),
            ("dev", disk.vdev.value.as_str()),
            ("mode", if disk.is_read_only { "r" } else { "w" }),
            ("device-type", "disk"),
            ("removable", "0"),
            ("bootable", "1"),
            ("discard-enable", "0"),
            ("specification", "xen"),
        ];
        self.device("vbd", disk.device, &front, &back);
    }

    fn vif(&mut self, vif: &Vif, spec: &VifSpec) {
        let handle = spec.index.to_string();
        let mac = Mac(&spec.mac).to_string();
        let front =
            [("handle", handle.as_str()), ("mac", &mac), ("trusted", if vif.is_trusted { "1" } else { "0" })];
        let back = [("handle", handle.as_str()), ("mac", &mac), ("bridge", &spec.bridge), ("type", "vif")];
        self.device("vif", spec.index, &front, &back);
    }
}

/// The requests that describe a guest.
pub fn describe(domid: u32, config: &GuestConfig, spec: &GuestSpec) -> Vec<StoreRequest> {
    let mut nodes = Nodes { requests: Vec::new(), domid };
    let home = home(domid);
    let vm = format!("/vm/{}", Uuid(&spec.uuid));
    nodes.directory(&home, 0, domid);
    nodes.directory(&vm, 0, domid);
    let memory = spec.memory_kib.to_string();
    nodes.write(format!("{vm}/uuid"), Uuid(&spec.uuid).to_string());
    nodes.write(format!("{vm}/name"), spec.name.as_str());
    nodes.write(format!("{home}/vm"), vm.as_str());
    nodes.write(format!("{home}/name"), spec.name.as_str());
    nodes.write(format!("{home}/domid"), domid.to_string());
    for vcpu in 0..spec.vcpus {
        nodes.write(format!("{home}/cpu/{vcpu}/availability"), "online");
    }
    // The two are equal so that the guest's balloon driver has nothing to do.
    nodes.write(format!("{home}/memory/static-max"), memory.as_str());
    nodes.write(format!("{home}/memory/target"), memory.as_str());
    nodes.write(format!("{home}/memory/videoram"), "0");
    nodes.write(format!("{home}/control/platform-feature-multiprocessor-suspend"), "1");
    nodes.write(format!("{home}/control/platform-feature-xs_reset_watches"), "1");
    // The console's ring is found through HVM parameters; these are for people.
    nodes.write(format!("{home}/console/backend-id"), "0");
    nodes.write(format!("{home}/console/type"), "xenconsoled");
    nodes.write(format!("{home}/console/output"), "pty");
    for name in GUEST_OWNED {
        nodes.guest_owned(format!("{home}/{name}"));
    }
    for (disk, spec) in config.disks.iter().zip(spec.disks.iter()) {
        nodes.disk(disk, spec);
    }
    for (vif, spec) in config.vifs.iter().zip(spec.vifs.iter()) {
        nodes.vif(vif, spec);
    }
    nodes.requests
}

/// The requests that remove all of a guest's nodes.
pub fn clear(domid: u32, uuid: &[u8; 16]) -> Vec<StoreRequest> {
    [
        home(domid),
        format!("/vm/{}", Uuid(uuid)),
        format!("/local/domain/0/backend/vbd/{domid}"),
        format!("/local/domain/0/backend/vif/{domid}"),
    ]
    .into_iter()
    .map(|path| StoreRequest::Remove { path })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::BootConfig;
    use alloc::collections::BTreeMap;
    use proto::toolstack::{GuestConfig as BootGuest, Resource};

    /// The store after the requests, with each node's permissions inherited as xenstored does it.
    fn tree() -> BTreeMap<String, (String, String)> {
        let text = "name='web'\ntype='pvh'\nkernel='k'\nmemory=64\nuuid='c0a7d3e2-1b5f-4e6a-9d8c-7b6a5f4e3d2c'\n\
                    disk=['d,,xvda,r','untrusted,d,,xvdb']\nvif=['mac=00:16:3e:01:02:03']";
        let resources = [("k", "guest/0/kernel"), ("d", "vol0")];
        let resources = resources.into_iter().map(|(path, name)| Resource { path, name }).collect();
        let boot = BootConfig::new(&BootGuest { file: "f", text, is_autostart: true, resources });
        let spec = boot.spec().unwrap();
        let mut tree: BTreeMap<String, (String, String)> = BTreeMap::new();
        for request in describe(7, boot.guest.as_ref().unwrap(), &spec) {
            match request {
                StoreRequest::Write { path, value } => {
                    let parent = path.match_indices('/').rev().find_map(|(i, _)| tree.get(&path[..i]));
                    let inherited = parent.map_or("n0".into(), |(_, permissions)| permissions.clone());
                    tree.entry(path).and_modify(|node| node.0 = value.clone()).or_insert((value, inherited));
                }
                StoreRequest::Permit { path, permissions } => {
                    tree.get_mut(&path).unwrap().1 = permissions.join(",");
                }
                other => panic!("{other:?}"),
            }
        }
        tree
    }

    #[test]
    fn nodes_have_libxls_values_and_permissions() {
        let tree = tree();
        let home = "/local/domain/7";
        let backend = "/local/domain/0/backend";
        for (path, value, permissions) in [
            (format!("{home}/name"), "web", "n0,r7"),
            (format!("{home}/domid"), "7", "n0,r7"),
            (format!("{home}/vm"), "/vm/c0a7d3e2-1b5f-4e6a-9d8c-7b6a5f4e3d2c", "n0,r7"),
            ("/vm/c0a7d3e2-1b5f-4e6a-9d8c-7b6a5f4e3d2c/name".into(), "web", "n0,r7"),
            (format!("{home}/cpu/0/availability"), "online", "n0,r7"),
            (format!("{home}/memory/target"), "65536", "n0,r7"),
            (format!("{home}/memory/static-max"), "65536", "n0,r7"),
            (format!("{home}/control/platform-feature-xs_reset_watches"), "1", "n0,r7"),
            (format!("{home}/control/shutdown"), "", "n7"),
            (format!("{home}/control/feature-poweroff"), "", "n7"),
            (format!("{home}/control/sysrq"), "", "n7"),
            (format!("{home}/data"), "", "n7"),
            (format!("{home}/device/vbd/51712/backend"), "/local/domain/0/backend/vbd/7/51712", "n7,r0"),
            (format!("{home}/device/vbd/51712/backend-id"), "0", "n7,r0"),
            (format!("{home}/device/vbd/51712/state"), "1", "n7,r0"),
            (format!("{home}/device/vbd/51712/virtual-device"), "51712", "n7,r0"),
            (format!("{home}/device/vbd/51712/device-type"), "disk", "n7,r0"),
            (format!("{home}/device/vbd/51712/trusted"), "1", "n7,r0"),
            (format!("{home}/device/vbd/51728/trusted"), "0", "n7,r0"),
            (format!("{backend}/vbd/7/51712/frontend"), "/local/domain/7/device/vbd/51712", "n0,r7"),
            (format!("{backend}/vbd/7/51712/frontend-id"), "7", "n0,r7"),
            (format!("{backend}/vbd/7/51712/online"), "1", "n0,r7"),
            (format!("{backend}/vbd/7/51712/state"), "1", "n0,r7"),
            (format!("{backend}/vbd/7/51712/dev"), "xvda", "n0,r7"),
            (format!("{backend}/vbd/7/51712/mode"), "r", "n0,r7"),
            (format!("{backend}/vbd/7/51728/mode"), "w", "n0,r7"),
            (format!("{home}/device/vif/0/handle"), "0", "n7,r0"),
            (format!("{home}/device/vif/0/mac"), "00:16:3e:01:02:03", "n7,r0"),
            (format!("{home}/device/vif/0/state"), "1", "n7,r0"),
            (format!("{backend}/vif/7/0/bridge"), "xenbr0", "n0,r7"),
            (format!("{backend}/vif/7/0/handle"), "0", "n0,r7"),
        ] {
            let expected = (value.to_owned(), permissions.to_owned());
            assert_eq!(tree.get(&path), Some(&expected), "{path}");
        }
    }

    #[test]
    fn clearing_removes_every_node_that_was_made() {
        let tree = tree();
        let uuid =
            [0xc0, 0xa7, 0xd3, 0xe2, 0x1b, 0x5f, 0x4e, 0x6a, 0x9d, 0x8c, 0x7b, 0x6a, 0x5f, 0x4e, 0x3d, 0x2c];
        let removed: Vec<_> = clear(7, &uuid).iter().map(|request| request.path().to_owned()).collect();
        for path in tree.keys() {
            let is_removed = |root: &String| path == root || path.starts_with(&format!("{root}/"));
            assert!(removed.iter().any(is_removed), "{path}");
        }
    }
}
