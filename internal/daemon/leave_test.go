package daemon

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	ma "github.com/multiformats/go-multiaddr"

	"fwd/identity"
)

// A name that is not on the roster is looked for in a newer one, and the owner asked for
// a short name: both take time.
func TestADaemonOutlivesTheNetworkThatItsClientsWaitFor(t *testing.T) {
	for try := 1; !outlivesItsNetwork(t); try++ {
		if try == 5 {
			t.Fatal("nobody waited while the laptop left")
		}
	}
}

// outlivesItsNetwork is one try; false: the laptop had left before the others came, for it does not wait for the owner
// where a dial has failed just now. Then an expose makes a network of its own.
func outlivesItsNetwork(t *testing.T) bool {
	t.Helper()
	relay, first := newRelay(t)
	laptop := &machine{t, Home{State: shortTemp(t)}}
	d := laptop.start(0)
	laptop.must(JoinRequest{Invite: first, As: "laptop"})
	relay.must(StopRequest{})
	if err := AwaitEnd(t.Context(), relay.home); err != nil {
		t.Fatal(err)
	}
	await(t, fallSilent(t, first), "a dial that nobody answers") // else the last one has failed just now

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
	var late atomic.Bool
	ended := make(chan error, len(waits))
	for _, request := range waits { // they outlast it: they wait as long, from now on
		go func() {
			ctx, giveUp := context.WithTimeout(context.Background(), patience)
			defer giveUp()
			c, err := Dial(ctx, laptop.home)
			if err == nil {
				err = c.Call(ctx, request, func(e Event) {
					if strings.Contains(e.Message, "belonged to no network") {
						late.Store(true)
						giveUp()
					}
				})
			}
			ended <- err
		}()
	}
	if err := await(t, left, "the end of leave"); err != nil {
		t.Fatal(err)
	}
	for range waits {
		await(t, ended, "the end of what waited")
	}
	if late.Load() {
		return false
	}
	if s := laptop.status(); s.Network != nil {
		t.Errorf("after leaving, the network is %+v", s.Network)
	}
	if _, err := laptop.call(TrustRequest{Name: "nosuch"}); failureOf(err).Code != "no-network" {
		t.Errorf("trust after it: %v", err)
	}
	return true
}

// fallSilent takes the addresses of an invite's contact, and answers nobody there; somebody has come when dialled is
// readable.
func fallSilent(t *testing.T, code string) (dialled <-chan struct{}) {
	t.Helper()
	invite, err := identity.ParseInvite(code)
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan struct{}, 1)
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
		go func() { // ends with l
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { c.Close() })
				select {
				case came <- struct{}{}:
				default:
				}
			}
		}()
		c, err := net.ListenPacket("udp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	return came
}
