package daemon

import (
	"net"
	"testing"

	ma "github.com/multiformats/go-multiaddr"

	"fwd/identity"
)

// A name that is not on the roster is looked for in a newer one, and the owner asked for
// a short name: both take time.
func TestADaemonOutlivesTheNetworkThatItsClientsWaitFor(t *testing.T) {
	relay, first := newRelay(t)
	laptop := &machine{t, Home{State: shortTemp(t)}}
	d := laptop.start(0)
	laptop.must(JoinRequest{Invite: first, As: "laptop"})
	relay.must(StopRequest{})
	if err := AwaitEnd(t.Context(), relay.home); err != nil {
		t.Fatal(err)
	}
	fallSilent(t, first)

	left := make(chan error, 1)
	go func() {
		_, err := laptop.call(LeaveRequest{})
		left <- err
	}()
	eventually(t, "the laptop tells the owner that it leaves", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.leaving || len(left) > 0 // it does not wait where a dial has failed just now
	})
	waits := []any{
		ConnectRequest{Name: "nosuch", Local: "127.0.0.1:0"},
		ConnectRequest{Name: "nosuch", Local: "-"},
		ExposeRequest{Target: "1", Name: "nosuch"},
		HandOverRequest{Peer: "nosuch"},
	}
	ended := make(chan error, len(waits))
	for _, request := range waits { // they outlast it: they wait as long, from now on
		go func() {
			_, err := laptop.call(request)
			ended <- err
		}()
	}
	if err := await(t, left, "the end of leave"); err != nil {
		t.Fatal(err)
	}
	for range waits {
		await(t, ended, "the end of what waited")
	}
	if s := laptop.status(); s.Network != nil {
		t.Errorf("after leaving, the network is %+v", s.Network)
	}
	if _, err := laptop.call(TrustRequest{Name: "nosuch"}); failureOf(err).Code != "no-network" {
		t.Errorf("trust after it: %v", err)
	}
}

// fallSilent takes the addresses of an invite's contact, and answers nobody there.
func fallSilent(t *testing.T, code string) {
	t.Helper()
	invite, err := identity.ParseInvite(code)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range invite.Contact().Addrs {
		port, err := a.ValueForProtocol(ma.P_TCP)
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		c, err := net.ListenPacket("udp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}
