package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// maxSocketPath: sun_path has 108 bytes on Linux and 104 on macOS and the
// BSDs, the final zero included.
const maxSocketPath = 100

// socketPath is path itself or, where that is too long for a unix socket, a
// name made of its hash in a folder of this user's in the temporary one.
func socketPath(path string) string {
	if len(path) <= maxSocketPath {
		return path
	}
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(os.TempDir(), fmt.Sprintf("fwd-%d", os.Getuid()), hex.EncodeToString(sum[:8])+".sock")
}

// listenSocket opens the control socket. The caller holds the home's lock, so
// a socket that is already there belongs to a daemon that died.
func listenSocket(home Home) (net.Listener, error) {
	path := home.Socket()
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the control socket's folder: %w", err)
	}
	mode := os.FileMode(0o600)
	if home.System {
		mode = 0o660 // systemd made the folder, open to the group fwd alone
	} else if err := checkPrivate(dir); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is in the control socket's place and is no socket: move it away", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the old control socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, fmt.Errorf("close the control socket to other users: %w", err)
	}
	return l, nil
}
