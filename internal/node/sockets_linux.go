package node

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// hopLimit is the control message that has one packet die after hops, and leaves the socket's other
// packets alone. (x/net/ipv4 can only receive it.)
func hopLimit(v4 bool, hops int) []byte {
	level, kind := unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT
	if v4 {
		level, kind = unix.IPPROTO_IP, unix.IP_TTL
	}
	b := make([]byte, unix.CmsgSpace(4))
	if unix.SizeofCmsghdr == 16 { // the length is as long as a pointer
		binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(4)))
	} else {
		binary.NativeEndian.PutUint32(b, uint32(unix.CmsgLen(4)))
	}
	binary.NativeEndian.PutUint32(b[unix.SizeofCmsghdr-8:], uint32(level))
	binary.NativeEndian.PutUint32(b[unix.SizeofCmsghdr-4:], uint32(kind))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(hops))
	return b
}
