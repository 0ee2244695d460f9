//go:build unix

package forward

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestAUnixSocketIsClosedToOthersFromItsFirstMoment, whatever the user's mask, and the mask is as before.
func TestAUnixSocketIsClosedToOthersFromItsFirstMoment(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	path := filepath.Join(t.TempDir(), "s")
	ln, err := listenClosed(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		t.Errorf("it is made with mode %o", mode)
	}
	if mask := syscall.Umask(0); mask != 0 {
		t.Errorf("the mask is %o afterwards, was 0", mask)
	}
}
