package daemon

import (
	"io"
	"net"
	"testing"
)

func TestAForwardFollowsAHandOverAndWhatIsOpenStays(t *testing.T) {
	relay, first := newRelay(t)
	old, laptop, fresh := newMachine(t), newMachine(t), newMachine(t)
	old.must(JoinRequest{Invite: first, As: "nas-box"})
	laptop.must(JoinRequest{Invite: relay.invite(), As: "laptop"})
	fresh.must(JoinRequest{Invite: relay.invite(), As: "nas-2"})
	old.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	fresh.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	e, _ := laptop.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: patience}, "listening")
	conn := opened(t, e.Local)
	eventually(t, "the connection is there", func() bool { return len(old.status().Sessions) == 1 })

	old.must(HandOverRequest{Peer: "nas-2"})
	eventually(t, "the forward leads to the new machine", func() bool { return laptop.status().Forwards[0].Machine == "nas-2" })
	opened(t, e.Local)
	eventually(t, "a new connection goes there", func() bool { return len(fresh.status().Sessions) == 1 })
	if _, err := conn.Write([]byte{2}); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "\x02\x01" {
		t.Errorf("the connection to the old machine ended with %q, %v", got, err)
	}
	laptop.must(TrustRequest{Name: "nas"}) // which is what is pinned already
	guest := newMachine(t)
	guest.must(JoinRequest{Invite: relay.inviteFor(InviteRequest{Only: []string{"nas"}}), As: "phone"})
	_, err := guest.call(HandOverRequest{Peer: "laptop"})
	wantCode(t, err, "refused")
}
