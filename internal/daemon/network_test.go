package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fwd/identity"
)

func TestOnlyANameThatSomebodyHasIsCalledTaken(t *testing.T) {
	relay, first := newRelay(t)
	nas := newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	if _, err := relay.call(RenameRequest{Peer: "vps", Name: "nas-box"}); failureOf(err).Code != "name-taken" {
		t.Errorf("a name that the NAS has: %v", err)
	}
	// Where the roster cannot be written, as on a full disk.
	roster := relay.home.file("roster")
	if err := os.Rename(roster, roster+".was"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(roster, "in-the-way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := relay.call(RenameRequest{Peer: "vps", Name: "relay"}); failureOf(err).Code != "failed" {
		t.Errorf("a roster that cannot be written: %+v", failureOf(err))
	}
}

func TestWhoMayTryAgainIsNotSentForAnotherInvite(t *testing.T) {
	for err, want := range map[error]Failure{
		identity.ErrOwnerFailed:   {Code: "failed", Exit: ExitFailed, Hint: "the same invite is good"},
		identity.ErrNetworkFull:   {Code: "invite-refused", Exit: ExitRefused, Hint: "another invite is no better"},
		identity.ErrInviteUsed:    {Code: "invite-used", Exit: ExitRefused, Hint: "ask for another"},
		identity.ErrInviteExpired: {Code: "invite-expired", Exit: ExitRefused, Hint: "ask for another"},
		identity.ErrInviteRevoked: {Code: "invite-refused", Exit: ExitRefused, Hint: "ask for another"},
	} {
		if f := inviteFailure(err); f.Code != want.Code || f.Exit != want.Exit || !strings.Contains(f.Hint, want.Hint) {
			t.Errorf("%v: %+v", err, f)
		}
	}
}

func TestTwoExposesAtOnceFoundOneNetwork(t *testing.T) {
	for range 5 {
		m := newMachine(t)
		exposed := make(chan error, 2)
		for _, name := range []string{"one", "two"} {
			go func() {
				c, err := Dial(t.Context(), m.home)
				if err != nil {
					exposed <- err
					return
				}
				exposed <- c.Call(t.Context(), ExposeRequest{Target: "1", Name: name}, func(e Event) {
					if e.Event == "exposed" && len(e.Names) == 2 {
						exposed <- nil
					}
				})
			}()
		}
		for range 2 {
			if err := await(t, exposed, "both are exposed, by their short names"); err != nil {
				t.Fatal(err)
			}
		}
		if s := m.status(); s.Network.Role != "owner" || len(s.Services) != 2 {
			t.Errorf("status is %+v", s)
		}
		m.must(StopRequest{})
	}
}
