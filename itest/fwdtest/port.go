package fwdtest

import (
	"math/rand/v2"
	"net"
	"sync"
)

// The ports that FreePort draws from: below those that systems give to whoever asks
// for any (from 32768 in Linux, 49152 elsewhere) and those that fwd draws for itself.
const firstPort, lastPort = 10000, 19999

var drawn sync.Map // by port; those of this test binary

// FreePort is a port of 127.0.0.1 that is free for TCP and UDP, for a server that is
// started a moment later; nobody else is given it meanwhile.
func FreePort(t interface{ Fatalf(string, ...any) }) int {
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if _, taken := drawn.LoadOrStore(port, true); taken {
			continue
		}
		at := net.IPv4(127, 0, 0, 1)
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: at, Port: port})
		if err != nil {
			continue
		}
		l.Close()
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: at, Port: port})
		if err != nil {
			continue
		}
		c.Close()
		return port
	}
	t.Fatalf("no port of 127.0.0.1 is free for both TCP and UDP")
	panic("unreachable")
}
