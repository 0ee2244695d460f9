package daemon

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func speedOf(t *testing.T, m *machine, request SpeedRequest) (s Speed, err error) {
	t.Helper()
	events, err := m.call(request)
	for _, e := range events {
		if e.Event == "speed" {
			if err := json.Unmarshal(e.Result, &s); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s, err
}

func TestSpeedMeasuresBothKindsOfPath(t *testing.T) {
	_, first := newRelay(t)
	nas, laptop := newMachine(t), newMachine(t)
	nas.must(JoinRequest{Invite: first, As: "nas-box"})
	laptop.must(JoinRequest{Invite: nas.invite(), As: "laptop"})
	eventually(t, "a measurement of both", func() bool { // a machine with too much to do makes a path too late
		s, err := speedOf(t, laptop, SpeedRequest{Name: "nas-box", For: 300 * time.Millisecond})
		if err != nil {
			t.Log(err)
			return false
		}
		if len(s.Paths) != 2 || s.Paths[0].Kind != "relay" || s.Paths[1].Kind != "direct" {
			t.Fatalf("%+v", s)
		}
		for _, p := range s.Paths {
			if p.Error != "" {
				t.Log(p.Error)
				return false
			}
			if p.Path == nil || p.Path.Kind != p.Kind || p.Up <= 0 || p.Down <= 0 {
				t.Errorf("%+v", p)
			}
		}
		return true
	})
}

// A guest may use its services and no more; a machine measures with one at a time, and not for long.
func TestSpeedIsForMembersAndBounded(t *testing.T) {
	vps, first := newRelay(t)
	laptop, guest := newMachine(t), newMachine(t)
	laptop.must(JoinRequest{Invite: first, As: "laptop"})
	vps.hold(ExposeRequest{Target: reverser(t), Name: "nas"}, "exposed")
	for _, e := range vps.must(InviteRequest{Only: []string{"nas"}}) {
		if e.Event == "invite" {
			guest.must(JoinRequest{Invite: e.Invite, As: "visitor"})
		}
	}
	var f *Failure
	if _, err := speedOf(t, guest, SpeedRequest{Name: "vps", For: time.Second}); !errors.As(err, &f) || f.Exit != ExitRefused || f.Code != "refused" ||
		!strings.Contains(f.What, "only members") || f.Hint != "the way and its round trip are told to all: fwd ping vps" {
		t.Errorf("a guest: %v", err)
	}
	if _, err := speedOf(t, laptop, SpeedRequest{Name: "vps", For: time.Hour}); !errors.As(err, &f) || f.Exit != ExitUsage {
		t.Errorf("an hour: %v", err)
	}
	eventually(t, "a member's measurement", func() bool {
		s, err := speedOf(t, laptop, SpeedRequest{Name: "vps", Path: "direct", For: 300 * time.Millisecond})
		return err == nil && s.Paths[0].Down > 0
	})
	if _, err := speedOf(t, laptop, SpeedRequest{Name: "laptop"}); !errors.As(err, &f) || f.Exit != ExitUsage {
		t.Errorf("itself: %v", err)
	}
}
