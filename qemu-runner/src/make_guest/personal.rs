//! What no two systems may share: name, keys, who may log in, the file system's UUID in its configuration.
//!
//! The files are written into the cached tree, each time all of them. Root's password works at the console; by
//! network root needs a key, as Debian's sshd has it. There is no password that is the same everywhere.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::tree::Recipe;
use crate::Error;

/// Letters of a made password: none that can be taken for another.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// 80 bits.
const PASSWORD_LEN: usize = 16;

/// Who may log in.
#[derive(Debug, Clone)]
pub struct Login {
    /// Root's, at the console.
    pub root_password: String,
    /// Public keys, by ssh.
    pub ssh_keys: Vec<String>,
}

/// One system's own.
#[derive(Debug, Clone)]
pub struct Personal {
    /// Host name.
    pub hostname: String,
    /// Login.
    pub login: Login,
}

impl Personal {
    /// Checks what goes into files and to programs.
    ///
    /// # Errors
    /// A name or a password that cannot be one.
    pub fn check(&self) -> Result<(), Error> {
        let name = &self.hostname;
        let is_name = (1..=63).contains(&name.len())
            && !name.starts_with('-')
            && !name.ends_with('-')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !is_name {
            return Err(Error::Usage(format!("--hostname: `{name}` is no host name (letters, digits, `-`)")));
        }
        let password = &self.login.root_password;
        if password.is_empty() || password.chars().any(char::is_control) {
            return Err(Error::Usage("--root-password: empty, or has control characters".to_owned()));
        }
        Ok(())
    }
}

/// A public key's file.
///
/// # Errors
/// It cannot be read, or is a private key.
pub fn read_key(path: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::path(path))?;
    let is_key = |line: &str| ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| line.starts_with(kind));
    if text.lines().any(is_key) && !text.contains("PRIVATE KEY") {
        return Ok(text.trim().to_owned());
    }
    Err(Error::Usage(format!(
        "--ssh-key: {} is no public key (usually its name ends in .pub)",
        path.display()
    )))
}

/// A password that nobody knows yet.
///
/// # Errors
/// The host has no random numbers.
pub fn random_password() -> Result<String, Error> {
    let mut bytes = [0; PASSWORD_LEN];
    let path = Path::new("/dev/urandom");
    let mut file = std::fs::File::open(path).map_err(Error::path(path))?;
    file.read_exact(&mut bytes).map_err(Error::path(path))?;
    let letter = |byte: u8| LETTERS.get(usize::from(byte) % LETTERS.len()).copied().map_or('x', char::from);
    Ok(bytes.into_iter().map(letter).collect())
}

/// Writes a file that only its owner can read.
///
/// # Errors
/// I/O.
pub fn write_secret(path: &Path, text: &str) -> Result<(), Error> {
    let _ = std::fs::remove_file(path);
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(Error::path(path))
}

/// Makes the tree this system's.
///
/// # Errors
/// I/O, or a program inside of the tree fails.
pub fn apply(tree: &Path, personal: &Personal, recipe: &Recipe, uuid: &str) -> Result<(), Error> {
    let kernel = newest_kernel(tree)?;
    let name = &personal.hostname;
    let keys: String = personal.login.ssh_keys.iter().map(|key| format!("{key}\n")).collect();
    let files: [(&str, u32, String); 9] = [
        ("etc/hostname", 0o644, format!("{name}\n")),
        ("etc/hosts", 0o644, format!("127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n{HOSTS_V6}")),
        ("etc/fstab", 0o644, format!("UUID={uuid} / ext4 errors=remount-ro 0 1\n")),
        ("etc/network/interfaces", 0o644, INTERFACES.to_owned()),
        // dhclient writes it; that of the host is none of the guest's business.
        ("etc/resolv.conf", 0o644, String::new()),
        ("etc/apt/sources.list", 0o644, sources(recipe)),
        ("etc/default/grub", 0o644, DEFAULT_GRUB.to_owned()),
        ("boot/grub/grub.cfg", 0o600, grub_cfg(&kernel, uuid)),
        ("root/.ssh/authorized_keys", 0o600, keys),
    ];
    for (path, mode, text) in &files {
        write(&tree.join(path), *mode, text)?;
    }
    let ssh = tree.join("root/.ssh");
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o700)).map_err(Error::path(&ssh))?;
    // Empty: systemd makes one up at the first boot, and dbus takes that.
    write(&tree.join("etc/machine-id"), 0o444, "")?;
    remove(&tree.join("var/lib/dbus/machine-id"))?;
    remove_host_keys(&tree.join("etc/ssh"))?;
    inside(tree, &["ssh-keygen", "-q", "-A"], "")?;
    // Not by PAM, which may ask for more than there is in a tree.
    let line = format!("root:{}\n", personal.login.root_password);
    inside(tree, &["chpasswd", "--crypt-method", "SHA512"], &line)
}

const HOSTS_V6: &str =
    "::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// systemd calls the first Xen interface enX0; without it (or with net.ifnames=0) it is eth0.
const INTERFACES: &str = "source /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n\n\
                          allow-hotplug enX0\niface enX0 inet dhcp\n\nallow-hotplug eth0\niface eth0 inet dhcp\n";

/// For `update-grub`. The guest has no screen: GRUB and Linux use Xen's console.
const DEFAULT_GRUB: &str = "GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\nGRUB_DISTRIBUTOR=Debian\nGRUB_TERMINAL=console\n\
                            GRUB_CMDLINE_LINUX_DEFAULT=\"\"\nGRUB_CMDLINE_LINUX=\"console=hvc0\"\n\
                            GRUB_DISABLE_OS_PROBER=true\n";

/// GRUB's menu until the guest runs `update-grub`.
fn grub_cfg(kernel: &str, uuid: &str) -> String {
    let entry = |title: &str, further: &str| {
        format!(
            "menuentry '{title}' {{\n    echo 'Loading Linux {kernel} ...'\n    linux /boot/vmlinuz-{kernel} \
             root=UUID={uuid} ro console=hvc0{further}\n    echo 'Loading the initial RAM disk ...'\n    initrd \
             /boot/initrd.img-{kernel}\n}}\n"
        )
    };
    format!(
        "# Written by make-guest; `update-grub` writes another one.\nset default=0\nset timeout=5\ninsmod \
         part_gpt\ninsmod ext2\nsearch --no-floppy --fs-uuid --set=root {uuid}\n{}{}",
        entry("Debian GNU/Linux", ""),
        entry("Debian GNU/Linux (recovery mode)", " single")
    )
}

fn sources(recipe: &Recipe) -> String {
    let Recipe { suite, mirror, .. } = recipe;
    let components = "main non-free-firmware";
    let mut text = format!("deb {mirror} {suite} {components}\n");
    // These have no updates of their own.
    if !matches!(suite.as_str(), "sid" | "unstable") {
        text.push_str(&format!("deb {mirror} {suite}-updates {components}\n"));
        text.push_str(&format!("deb http://deb.debian.org/debian-security {suite}-security {components}\n"));
    }
    text
}

fn newest_kernel(tree: &Path) -> Result<String, Error> {
    let boot = tree.join("boot");
    let entries = std::fs::read_dir(&boot).map_err(Error::path(&boot))?.filter_map(Result::ok);
    let versions = entries.filter_map(|entry| {
        let version = entry.file_name().to_string_lossy().strip_prefix("vmlinuz-")?.to_owned();
        boot.join(format!("initrd.img-{version}")).is_file().then_some(version)
    });
    versions
        .max()
        .ok_or_else(|| Error::Usage(format!("{} has no kernel with an initial RAM disk", boot.display())))
}

fn remove_host_keys(dir: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(dir).map_err(Error::path(dir))?.filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::path(path)(error)),
        _ => Ok(()),
    }
}

/// Writes a file of the tree; a link in its place is replaced, not followed to the host's file.
fn write(path: &Path, mode: u32, text: &str) -> Result<(), Error> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(Error::path(dir))?;
    }
    remove(path)?;
    std::fs::write(path, text).map_err(Error::path(path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(Error::path(path))
}

/// Runs a program of the tree, with the tree as its root.
fn inside(tree: &Path, words: &[&str], input: &str) -> Result<(), Error> {
    let mut child = Command::new("chroot")
        .arg(tree)
        .args(words)
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("chroot"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read says why it failed.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(Error::io("chroot"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Usage(format!("`{}` in the new system failed: {}", words.join(" "), said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn personal(hostname: &str, password: &str) -> Personal {
        let login = Login { root_password: password.to_owned(), ssh_keys: Vec::new() };
        Personal { hostname: hostname.to_owned(), login }
    }

    #[test]
    fn names_and_passwords_are_checked() {
        assert!(personal("web-1", "x y").check().is_ok());
        for (hostname, password) in [("", "x"), ("a b", "x"), ("-a", "x"), ("a", ""), ("a", "x\ntoor:y")] {
            assert!(personal(hostname, password).check().is_err(), "{hostname:?} {password:?}");
        }
    }

    #[test]
    fn passwords_differ_and_are_easy_to_type() {
        let (one, two) = (random_password().unwrap(), random_password().unwrap());
        assert_ne!(one, two);
        assert!(one.len() == PASSWORD_LEN && one.bytes().all(|byte| LETTERS.contains(&byte)));
    }

    #[test]
    fn a_private_key_is_not_put_into_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "ssh-ed25519 AAAA me@here\n").unwrap();
        assert_eq!(read_key(&path).unwrap(), "ssh-ed25519 AAAA me@here");
        std::fs::write(&path, "-----BEGIN OPENSSH PRIVATE KEY-----\nssh-x\n").unwrap();
        assert!(read_key(&path).is_err());
    }

    #[test]
    fn a_link_in_the_tree_does_not_lead_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, link) = (dir.path().join("outside"), dir.path().join("link"));
        std::fs::write(&outside, "kept").unwrap();
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        write(&link, 0o644, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "kept");
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "new");
    }

    #[test]
    fn secrets_are_for_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.password");
        for text in ["one", "two"] {
            write_secret(&path, text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
