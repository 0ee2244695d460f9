package fwdtest

import (
	"math/rand/v2"
	"net"
	"sync"
)

// The ports that FreePort draws from: below those that systems give to whoever asks
// for any (from 32768 in Linux, 49152 elsewhere) and those that fwd draws for itself.
const firstPort, lastPort = 10000, 19999

// Row is how many ports in a row FreePort reserves.
const Row = 7

var held sync.Map // listener → nothing: a listener that nobody refers to is closed

// FreePort is a port of 127.0.0.1 that is free for TCP and UDP, for a server that is
// started a moment later. So are the others of a Row from it on, for ranges and for a
// relay, which reflects at the ports after its own. Nobody else is given them: the port
// behind the row is held until this test binary ends, which other binaries see too.
func FreePort(t interface{ Fatalf(string, ...any) }) int {
	const rows = (lastPort - firstPort + 1) / (Row + 1)
	for range 1000 {
		port := firstPort + rand.IntN(rows)*(Row+1)
		hold, err := net.ListenTCP("tcp", loopback(port+Row))
		if err != nil {
			continue
		}
		if !free(port) {
			hold.Close()
			continue
		}
		held.Store(hold, nil)
		return port
	}
	t.Fatalf("no %d ports in a row of 127.0.0.1 are free for both TCP and UDP", Row)
	panic("unreachable")
}

// free says whether nobody listens at the ports of a row.
func free(first int) bool {
	for port := first; port < first+Row; port++ {
		l, err := net.ListenTCP("tcp", loopback(port))
		if err != nil {
			return false
		}
		l.Close()
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: loopback(port).IP, Port: port})
		if err != nil {
			return false
		}
		c.Close()
	}
	return true
}

func loopback(port int) *net.TCPAddr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port} }
