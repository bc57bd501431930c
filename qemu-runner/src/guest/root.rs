//! The default guest's root disk: a small ext4 image with busybox and a handful of scripts.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use crate::Error;

/// Size of the image in MiB.
pub const SIZE_MIB: u32 = 64;

/// Files of the image: path, mode, content.
pub const FILES: [(&str, u32, &str); 10] = [
    ("etc/passwd", 0o644, "root::0:0:root:/root:/bin/sh\n"),
    ("etc/group", 0o644, "root:x:0:\n"),
    ("etc/hostname", 0o644, "ailurus-guest\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost ailurus-guest\n10.0.2.2 host\n"),
    ("etc/motd", 0o644, MOTD),
    (
        "etc/os-release",
        0o644,
        "NAME=\"Ailurus guest\"\nID=ailurus-guest\nPRETTY_NAME=\"Ailurus default guest (busybox)\"\n",
    ),
    ("etc/profile", 0o644, PROFILE),
    // hvc0 by name: a shell on /dev/console could not be a terminal's foreground job.
    (
        "etc/inittab",
        0o644,
        "::sysinit:/etc/rc\nhvc0::respawn:-/bin/sh\n::ctrlaltdel:/sbin/reboot\n::shutdown:/etc/rc.down\n",
    ),
    ("etc/rc", 0o755, RC),
    ("etc/rc.down", 0o755, "#!/bin/sh\nsync\numount -a -r 2>/dev/null\nmount -o remount,ro / 2>/dev/null\n"),
];

const UDHCPC: (&str, u32, &str) = ("etc/udhcpc.script", 0o755, DHCP);

const MOTD: &str = "\n  This is an unmodified Linux kernel on Ailurus. Its console, disk (xvda) and network (eth0)\n  \
                    are served by separate service domains. Ctrl+] goes to the operator's prompt.\n\n";

const PROFILE: &str = "export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root PS1='root@\\h:\\w# '\nexport TERM=vt100\ncd\n\
                       [ -n \"$MOTD_SHOWN\" ] || cat /etc/motd\nexport MOTD_SHOWN=1\n";

const RC: &str = r#"#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -o remount,rw /
mount -t tmpfs -o size=32m tmp /tmp
mount -t tmpfs -o size=4m run /run
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
hostname -F /etc/hostname
ip link set lo up
if [ -d /sys/class/net/eth0 ]; then
    ip link set eth0 up
    udhcpc -b -S -i eth0 -t 5 -T 2 -A 5 -s /etc/udhcpc.script >/dev/null 2>&1 &
fi
"#;

const DHCP: &str = r#"#!/bin/sh
case "$1" in
deconfig)
    ip addr flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    ip addr replace "$ip/${mask:-24}" dev "$interface"
    for gateway in $router; do
        ip route replace default via "$gateway" dev "$interface"
    done
    : >/tmp/resolv.conf
    for server in $dns; do
        echo "nameserver $server" >>/tmp/resolv.conf
    done
    echo "$ip" >/run/address
    ;;
esac
"#;

/// Everything that decides the image's content, for its name in the cache.
pub fn recipe() -> String {
    let files = FILES.iter().chain([&UDHCPC]);
    let text: String = files.map(|(path, mode, text)| format!("{path} {mode:o}\n{text}\n")).collect();
    format!("{SIZE_MIB} {text}")
}

/// Makes the image.
///
/// # Errors
/// busybox does not run on the host, or mke2fs fails.
pub fn build(busybox: &Path, mke2fs: &Path, image: &Path) -> Result<(), Error> {
    let tree = tempfile::tempdir().map_err(Error::io("temporary folder"))?;
    let root = tree.path();
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).map_err(Error::path(root))?;
    for dir in [
        "bin", "sbin", "usr/bin", "usr/sbin", "etc", "dev", "proc", "sys", "tmp", "run", "root", "mnt",
        "var/www",
    ] {
        std::fs::create_dir_all(root.join(dir)).map_err(Error::path(root))?;
    }
    std::fs::copy(busybox, root.join("bin/busybox")).map_err(Error::path(busybox))?;
    let output = Command::new(busybox).arg("--list-full").output().map_err(Error::path(busybox))?;
    for applet in String::from_utf8_lossy(&output.stdout).lines().filter(|a| *a != "bin/busybox") {
        // Some programs stand directly in the root folder; those nobody needs.
        if applet.contains('/') {
            let link = root.join(applet);
            symlink("/bin/busybox", &link).map_err(Error::path(&link))?;
        }
    }
    for (path, mode, text) in FILES.iter().chain([&UDHCPC]) {
        let path = root.join(path);
        std::fs::write(&path, text).map_err(Error::path(&path))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode))
            .map_err(Error::path(&path))?;
    }
    let resolv = root.join("etc/resolv.conf");
    symlink("/tmp/resolv.conf", &resolv).map_err(Error::path(&resolv))?;

    let part = image.with_extension("part");
    let _ = std::fs::remove_file(&part);
    let output = Command::new(mke2fs)
        .args(["-q", "-F", "-t", "ext4", "-L", "root", "-m", "0", "-d"])
        .arg(root)
        // Nothing is left for the guest to initialise in the background; all files belong to root.
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"])
        .arg(&part)
        .arg(format!("{SIZE_MIB}M"))
        .output()
        .map_err(Error::path(mke2fs))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Usage(format!("mke2fs cannot make {}: {}", image.display(), said.trim())));
    }
    std::fs::rename(&part, image).map_err(Error::path(image))
}
