//go:build !windows

package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// checkPrivate refuses a folder that other users may write or look into: who
// can reach the control socket rules this machine's fwd.
func checkPrivate(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Getuid() {
		if dir == SystemHome().State {
			return servicesOwn(dir)
		}
		return usage("give it to the user that runs fwd: chown "+fmt.Sprint(os.Getuid())+" "+dir,
			"%s belongs to user %d, not to this one (%d)", dir, st.Uid, os.Getuid())
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return usage("chmod 700 "+dir, "%s is open to other users (mode %04o)", dir, mode)
	}
	return nil
}

// giveToFoldersOwner: what root writes in a service's home is the service's to read.
func giveToFoldersOwner(path string) error {
	info, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Getuid() {
		return os.Lchown(path, int(st.Uid), int(st.Gid))
	}
	return nil
}
