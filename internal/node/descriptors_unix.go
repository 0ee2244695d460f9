//go:build unix

package node

import "golang.org/x/sys/unix"

// Descriptors is how many this process may open; 0: nobody knows. (Go raises the soft limit to the
// hard one by itself.)
func Descriptors() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil || uint64(l.Cur) > 1<<20 {
		return 0
	}
	return int(l.Cur)
}
