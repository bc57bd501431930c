//! Which accelerator QEMU uses: KVM only where nested SVM really works, else software emulation.

use std::path::Path;

/// How QEMU runs the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Accel {
    /// Software emulation; it has SVM and nested paging.
    Tcg,
    /// The host's KVM with nested SVM.
    Kvm,
}

/// Chooses, and says why in a sentence.
pub fn detect() -> (Accel, String) {
    detect_in(Path::new("/"))
}

fn detect_in(root: &Path) -> (Accel, String) {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let tcg = |why: &str| (Accel::Tcg, format!("software emulation ({why})"));
    let device = root.join("dev/kvm");
    if std::fs::OpenOptions::new().read(true).write(true).open(&device).is_err() {
        return tcg("/dev/kvm is not there or may not be opened");
    }
    let cpu = read("proc/cpuinfo");
    let flags = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    if !flags.split_whitespace().any(|flag| flag == "svm") {
        return tcg("this processor has no SVM that KVM could pass on");
    }
    let nested = read("sys/module/kvm_amd/parameters/nested");
    if !["1", "Y"].contains(&nested.trim()) {
        return tcg("KVM's nested SVM is off: module kvm_amd, parameter nested");
    }
    (Accel::Kvm, "KVM with nested SVM".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_is_taken_only_with_nested_svm() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(detect_in(dir.path()).0, Accel::Tcg);
        put("dev/kvm", "");
        put("proc/cpuinfo", "model name : x\nflags : fpu vmx\n");
        assert!(detect_in(dir.path()).1.contains("no SVM"));
        put("proc/cpuinfo", "model name : x\nflags : fpu svm\n");
        assert!(detect_in(dir.path()).1.contains("nested SVM is off"));
        put("sys/module/kvm_amd/parameters/nested", "0\n");
        assert_eq!(detect_in(dir.path()).0, Accel::Tcg);
        put("sys/module/kvm_amd/parameters/nested", "1\n");
        assert_eq!(detect_in(dir.path()).0, Accel::Kvm);
    }
}
