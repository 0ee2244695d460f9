package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"fwd/identity"
)

// inviteFor makes an invite by req.
func (m *machine) inviteFor(req InviteRequest) string {
	m.t.Helper()
	for _, e := range m.must(req) {
		if e.Event == "invite" {
			return e.Invite
		}
	}
	m.t.Fatal("no invite")
	return ""
}

// wantCode fails unless err is a Failure of that code.
func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var f *Failure
	if !errors.As(err, &f) || f.Code != code {
		t.Errorf("got %v, want a failure of code %s", err, code)
	}
}

// opened connects through a forward and sends a byte, so that the session is there.
func opened(t *testing.T, local string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", local)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	return conn
}

// wantReset waits for conn's end, which must be a reset.
func wantReset(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection ended with %v, want a reset", err)
	}
}

func TestSessionsEndWhenTheirMachinesEntryExpires(t *testing.T) {
	relay, first := newRelay(t)
	nas, guest := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	nas.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	const access = 15 * time.Second // the set-up has to fit in, on a busy machine too
	guest.must(JoinRequest{Invite: relay.inviteFor(InviteRequest{Only: []string{"nas"}, For: access}), As: "guest"})
	began := time.Now()
	e, _ := guest.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0"}, "listening")
	conn := opened(t, e.Local)
	eventually(t, "the session at the exit", func() bool { return len(nas.status().Sessions) == 1 })
	wantReset(t, conn)
	t.Logf("the session of %v of access lived %v", access, time.Since(began))
	eventually(t, "no session at the exit", func() bool { return len(nas.status().Sessions) == 0 })
}

func TestADenyByTagBeatsEveryAllowAtOnceAndOutlivesTheService(t *testing.T) {
	relay, first := newRelay(t)
	nas, phone := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	phone.must(JoinRequest{Invite: relay.inviteFor(InviteRequest{Tags: []string{"mobile"}}), As: "phone"})
	expose := ExposeRequest{Target: reverser(t), Name: "nas", Allow: []string{"members", "phone"}}
	_, end := nas.hold(expose, "exposed")
	e, _ := phone.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0"}, "listening")
	conn := opened(t, e.Local)
	eventually(t, "the session at the exit", func() bool { return len(nas.status().Sessions) == 1 })

	nas.must(AllowRequest{Service: "nas", Who: "tag:mobile", Deny: true})
	wantReset(t, conn)
	_, err := phone.call(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: patience})
	wantCode(t, err, "refused")

	end() // and exposed anew it is denied still
	eventually(t, "the service is gone", func() bool { return len(nas.status().Services) == 0 })
	nas.hold(expose, "exposed")
	_, err = phone.call(ConnectRequest{Name: "nas.nas-box", Local: "127.0.0.1:0", Timeout: patience})
	wantCode(t, err, "refused")

	nas.must(AllowRequest{Service: "nas", Who: "tag:mobile"}) // takes it back
	phone.hold(ConnectRequest{Name: "nas.nas-box", Local: "127.0.0.1:0", Timeout: patience}, "listening")
	_, err = nas.call(AllowRequest{Service: "nas", Who: "!phone", Deny: true})
	wantCode(t, err, "usage")
}

func TestAListMeansTheMachinesThatHadTheNamesWhenItWasWritten(t *testing.T) {
	relay, first := newRelay(t)
	nas, phone, other := newMachine(t), newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	phone.must(JoinRequest{Invite: relay.invite(), As: "phone"})
	other.must(JoinRequest{Invite: relay.invite(), As: "other"})
	nas.hold(ExposeRequest{Target: reverser(t), Name: "nas", Allow: []string{"phone"}}, "exposed")
	nas.must(RenameRequest{Peer: "phone", Name: "old-phone"})
	nas.must(RenameRequest{Peer: "other", Name: "phone"})
	nas.must(AllowRequest{Service: "nas", Who: "members", Deny: true}) // reads the whole list again
	_, err := other.call(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: patience})
	wantCode(t, err, "refused")
	phone.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: patience}, "listening")

	// A machine on the list that is revoked does not keep the next deny from working.
	nas.must(RevokeRequest{Peer: "phone"})
	nas.must(AllowRequest{Service: "nas", Who: "old-phone", Deny: true})
	_, err = phone.call(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: patience})
	wantCode(t, err, "refused")
}

func TestOnlyAdminsAreObeyedFromAfar(t *testing.T) {
	relay, first := newRelay(t)
	admin, member := newMachine(t), newMachine(t)
	admin.must(JoinRequest{Invite: first, As: "admin"})
	member.must(JoinRequest{Invite: relay.invite(), As: "member"})
	member.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	for _, req := range []any{InviteRequest{}, RevokeRequest{Peer: "admin"}, RenameRequest{Peer: "admin", Name: "x"}, InvitesRequest{}, CancelInviteRequest{ID: "0011223344556677"}} {
		_, err := member.call(req)
		wantCode(t, err, "not-admin")
	}
	_, err := member.call(AllowRequest{Service: "nas.admin", Who: "member"})
	wantCode(t, err, "refused") // the word of the machine it was asked of
	admin.must(AllowRequest{Service: "nas.member", Who: "admin", Deny: true})
	_, err = admin.call(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: patience})
	wantCode(t, err, "refused")
}

// Who wants a service gone does not lose its machine.
func TestAServicesNameMeansItsMachineForPingAlone(t *testing.T) {
	relay, first := newRelay(t)
	dev, laptop := newMachine(t), newMachine(t)
	dev.must(JoinRequest{Invite: first, As: "dev"})
	laptop.must(JoinRequest{Invite: relay.invite(), As: "laptop"})
	dev.hold(ExposeRequest{Target: reverser(t), Name: "app"}, "exposed")
	epoch := relay.status().Network.Epoch
	for _, c := range []struct {
		request any
		hint    string
	}{
		{RevokeRequest{Peer: "app"}, "if the machine is meant: fwd revoke dev; if the service alone: fwd deny app.dev WHO, or on dev: fwd unexpose app"},
		{RevokeRequest{Peer: "app.dev"}, "fwd revoke dev;"},
		{RenameRequest{Peer: "app", Name: "web"}, "if the machine is meant: fwd rename dev web"},
		{InviteRequest{Replace: "app"}, "if the machine is meant: fwd invite --replace dev"},
		{OwnerMoveRequest{Peer: "app"}, "if the machine is meant: fwd owner move dev"},
		{HandOverRequest{Peer: "app"}, "if the machine is meant: fwd id hand-over dev"},
	} {
		_, err := relay.call(c.request)
		if f := failureOf(err); err == nil || f.Exit != ExitUnknownName || !strings.Contains(f.Hint, c.hint) {
			t.Errorf("%+v: %+v", c.request, f)
		}
	}
	if now := relay.status().Network.Epoch; now != epoch {
		t.Errorf("the roster has changed: epoch %d was %d", now, epoch)
	}
	laptop.must(PingRequest{Name: "app", Count: 1})
}

func TestAnInviteThatContradictsItselfIsRefused(t *testing.T) {
	relay, _ := newRelay(t)
	for _, req := range []InviteRequest{
		{Only: []string{"nas.vps"}, Device: true}, {Only: []string{"nas.vps"}, Admin: true}, {Device: true, Relay: true},
		{Device: true, Admin: true}, {Replace: "vps", Admin: true}, {Replace: "vps", Tags: []string{"ops"}}, {Only: []string{"nas.vps"}, Relay: true},
	} {
		_, err := relay.call(req)
		wantCode(t, err, "usage")
	}
	relay.must(InviteRequest{Relay: true, Admin: true}) // a relay that also administers is no contradiction
}

func TestARelayWhoseInviteIsCancelledIsWaitedForNoMore(t *testing.T) {
	owner, _ := newRelay(t)
	code := owner.inviteFor(InviteRequest{Relay: true, At: "127.0.0.1:" + freePort(t)})
	waits := func() bool { return strings.Contains(strings.Join(owner.status().Warnings, " "), "relay-waited-for") }
	eventually(t, "the owner to say that it waits", waits)
	owner.must(CancelInviteRequest{ID: code})
	eventually(t, "the owner to wait no more", func() bool { return !waits() })
}

func TestAnotherMachinesWordsAreShownAsWordsOnly(t *testing.T) {
	for in, want := range map[string]string{
		"plain words": "plain words", "\x1b[31mred\x1b[0m": "[31mred[0m", "a\nb\r\tc": "abc", "\xff\xfe": "\ufffd\ufffd",
	} {
		if got := clean(in, 100); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
	if got := clean("äöü", 3); got != "ä\ufffd" && got != "ä" {
		t.Errorf("cut to %q", got)
	}
	raw, err := json.Marshal([]InviteEntry{{ID: "\x1b[31mred", Caps: []string{"a\nb"}, Tags: []string{"c\u202ed"}, State: strings.Repeat("x", 1000), Uses: 5}})
	if err != nil {
		t.Fatal(err)
	}
	var told []InviteEntry
	if err := json.Unmarshal(cleanInvites(raw), &told); err != nil {
		t.Fatal(err)
	}
	if i := told[0]; i.ID != "[31mred" || i.Caps[0] != "ab" || i.Tags[0] != "cd" || len(i.State) > 80 || i.Uses != 5 {
		t.Errorf("another machine's invite is shown as %+v", i)
	}
}

func TestALaneWithoutARosterIsRefused(t *testing.T) {
	book, err := identity.OpenBook(t.TempDir() + "/roster")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{book: book, log: slog.New(slog.DiscardHandler)} // as after `fwd leave`, with a stream still being read
	if d.authorizeLane("somebody") == nil {
		t.Error("let in")
	}
	if _, f := d.carryOut("somebody", Request{Command: "invite"}); f == nil {
		t.Error("carried out")
	}
}

func TestAKeyOnTwoMachinesIsToldToBoth(t *testing.T) {
	_, first := newRelay(t)
	nas := newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	copied := Home{State: shortTemp(t)}
	for _, name := range []string{"identity.key", "roster", "known"} {
		if data, err := os.ReadFile(nas.home.file(name)); err == nil {
			if err := identity.WriteFile(copied.file(name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if w := nas.status().Warnings; len(w) != 0 {
		t.Fatalf("warned of %v before there was reason to", w)
	}
	twin := &machine{t, copied}
	twin.run(func(ctx context.Context) error { return run(ctx, copied, options{}) })
	for _, m := range []*machine{nas, twin} {
		eventually(t, "both are told", func() bool {
			events, err := m.call(StatusRequest{})
			if err != nil || len(events) == 0 {
				return false
			}
			return strings.Contains(string(events[0].Result), "key-in-use-twice")
		})
	}
}

func TestARevokedMachineComesBackByANewInvite(t *testing.T) {
	relay, first := newRelay(t)
	nas, phone := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	nas.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	old := relay.inviteFor(InviteRequest{Only: []string{"nas"}})
	phone.must(JoinRequest{Invite: old, As: "phone"})
	phone.must(JoinRequest{Invite: relay.invite(), As: "phone"}) // a guest that becomes a member
	eventually(t, "a member", func() bool { return phone.status().Network.Role == "member" })
	nas.must(RevokeRequest{Peer: "phone"})
	if _, err := phone.call(JoinRequest{Invite: old}); err == nil {
		t.Error("it came back by the invite of before")
	}
	phone.must(JoinRequest{Invite: relay.invite(), As: "phone"})
	phone.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: patience}, "listening")
}

func TestTheOwnerMovesAndThenObeysTheNewOne(t *testing.T) {
	relay, first := newRelay(t)
	nas, phone := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	phone.must(JoinRequest{Invite: relay.invite(), As: "phone"})
	_, err := nas.call(OwnerMoveRequest{Peer: "phone"})
	wantCode(t, err, "not-owner")
	_, err = relay.call(OwnerMoveRequest{Peer: "vps"})
	wantCode(t, err, "usage")
	relay.must(OwnerMoveRequest{Peer: "nas-box"})
	if s := nas.status(); s.Network.Role != "owner" || s.Network.Term != 2 {
		t.Errorf("the new owner is %+v", s.Network)
	}
	eventually(t, "the old owner is a member", func() bool { return relay.status().Network.Role != "owner" })
	eventually(t, "the others know", func() bool { return phone.status().Network.Term == 2 })
	third := newMachine(t)
	third.must(JoinRequest{Invite: nas.invite(), As: "third"}) // carried by the relay to the new owner
	relay.must(RenameRequest{Peer: "third", Name: "third-2"})  // an admin still: asks the new owner
	nas.must(RevokeRequest{Peer: "phone"})
	_, err = relay.call(OwnerExportRequest{Passphrase: "x"})
	wantCode(t, err, "not-owner")
}

// Who joined a moment ago would be lost by a new owner that goes on from the roster of before.
func TestTheNewOwnerWaitsForTheRosterThatItGoesOnFrom(t *testing.T) {
	relay, first := newRelay(t)
	nas := &machine{t, Home{State: shortTemp(t)}}
	d := nas.start(0)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	eventually(t, "the roster's arrival", func() bool { return d.book.Current() != nil })
	s := d.book.Current()
	if err := d.awaitRoster(t.Context(), s.Term, s.Epoch); err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	wantCode(t, d.awaitRoster(brief, s.Term, s.Epoch+1), "unreachable")
	waited := make(chan error, 1)
	go func() { waited <- d.awaitRoster(t.Context(), s.Term, s.Epoch+1) }()
	newMachine(t).must(JoinRequest{Invite: relay.invite(), As: "phone"})
	if err := await(t, waited, "the roster with the phone"); err != nil {
		t.Fatal(err)
	}
}

func TestAReplacedMachineKeepsItsPlaceAndItsUsersAreAskedFirst(t *testing.T) {
	relay, first := newRelay(t)
	old, laptop, fresh := newMachine(t), newMachine(t), newMachine(t)
	laptop.must(JoinRequest{Invite: first, As: "laptop"})
	old.must(JoinRequest{Invite: relay.inviteFor(InviteRequest{Tags: []string{"box"}}), As: "nas-box"})
	_, end := old.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	laptop.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: patience}, "listening") // pins it
	end()
	fresh.must(JoinRequest{Invite: relay.inviteFor(InviteRequest{Replace: "nas-box"}), As: "whatever"})
	if s := fresh.status(); s.Name != "nas-box" {
		t.Errorf("the new machine is called %q", s.Name)
	}
	fresh.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	eventually(t, "the laptop has heard", func() bool {
		_, err := laptop.call(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: time.Second})
		var f *Failure
		return errors.As(err, &f) && f.Exit == ExitIdentityChanged
	})
	laptop.must(TrustRequest{Name: "nas"})
	laptop.hold(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: patience}, "listening")
	if _, err := old.call(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: 2 * time.Second}); err == nil {
		t.Error("the machine replaced still gets in")
	}
}

func TestADeviceExposesAndUsesNothing(t *testing.T) {
	relay, first := newRelay(t)
	nas, sensor := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	sensor.must(JoinRequest{Invite: relay.inviteFor(InviteRequest{Device: true}), As: "sensor"})
	nas.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	sensor.hold(ExposeRequest{Target: reverser(t), Name: "temperature"}, "exposed")
	nas.hold(ConnectRequest{Name: "temperature", Local: "127.0.0.1:0", Timeout: patience}, "listening")
	_, err := sensor.call(ConnectRequest{Name: "nas", Local: "127.0.0.1:0", Timeout: patience})
	wantCode(t, err, "refused")
}

func TestASecondRelayJoinsByAnInviteAndCarries(t *testing.T) {
	owner, first := newRelay(t)
	nas := newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	code := nas.inviteFor(InviteRequest{Relay: true}) // an admin asks the owner
	second := &machine{t, Home{State: shortTemp(t)}}
	at := "127.0.0.1:" + freePort(t)
	up := make(chan Event, 1)
	second.run(func(ctx context.Context) error {
		return Run(ctx, second.home, RelayRequest{Listen: []string{at}, Announce: []string{at}, Name: "vps-2", Invite: code}, func(e Event) {
			if e.Event == "relay" {
				up <- e
			}
		})
	})
	await(t, up, "the second relay")
	eventually(t, "the NAS reserves at both", func() bool {
		reserved := 0
		for _, r := range nas.status().Relays {
			if r.Reserved {
				reserved++
			}
		}
		return reserved == 2
	})
	if s := owner.status(); len(s.Relays) != 1 {
		t.Errorf("the owner lists %d other relays", len(s.Relays))
	}
	member := newMachine(t)
	member.must(JoinRequest{Invite: nas.invite(), As: "member"}) // by a relay that is not the owner, perhaps
	if _, err := second.call(InviteRequest{}); err == nil {
		t.Error("a relay may invite")
	}
}
