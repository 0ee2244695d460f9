package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// checkPorts fails where somebody else listens already. libp2p shares its
// ports (SO_REUSEPORT, which punching needs) and is content with one address
// of several, so it would not notice: the two programs would each get some of
// the connections.
func checkPorts(listen []ma.Multiaddr) error {
	for _, a := range listen {
		network, address, err := manet.DialArgs(withoutQUIC(a))
		if err != nil {
			continue // what cannot be tried out, libp2p will say
		}
		if err := tryListen(network, address); errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("%s %s: %w", network, address, err)
		}
	}
	return nil
}

// checkRelayPorts is checkPorts as a relay's user is told it.
func checkRelayPorts(listen []ma.Multiaddr) error {
	err := checkPorts(listen)
	if err == nil {
		return nil
	}
	hint := "is another relay running? choose another port with --listen, or end the other program"
	if errors.Is(err, os.ErrPermission) {
		hint = "ports below 1024 are for root; choose another with --listen"
	}
	return fail(ExitLocalPort, "local-port", hint, "cannot start the relay: %v", err)
}

func tryListen(network, address string) error {
	switch network {
	case "udp", "udp4", "udp6":
		c, err := net.ListenPacket(network, address)
		if err != nil {
			return err
		}
		return c.Close()
	case "tcp", "tcp4", "tcp6":
		l, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		return l.Close()
	}
	return nil
}
