//go:build !windows

package daemon

import (
	"fmt"
	"os"
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
			return usage("while the service runs fwd asks it (sudo systemctl start fwd); what it does stands in "+SystemHome().Config,
				"%s belongs to the machine's service, which does not run", dir)
		}
		return usage("give it to the user that runs fwd: chown "+fmt.Sprint(os.Getuid())+" "+dir,
			"%s belongs to user %d, not to this one (%d)", dir, st.Uid, os.Getuid())
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return usage("chmod 700 "+dir, "%s is open to other users (mode %04o)", dir, mode)
	}
	return nil
}
