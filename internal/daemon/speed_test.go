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
	s, err := speedOf(t, laptop, SpeedRequest{Name: "nas-box", For: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Paths) != 2 || s.Paths[0].Kind != "relay" || s.Paths[1].Kind != "direct" {
		t.Fatalf("%+v", s)
	}
	for _, p := range s.Paths {
		if p.Error != "" || p.Path == nil || p.Path.Kind != p.Kind || p.Up < 1e6 || p.Down < 1e6 {
			t.Errorf("%+v", p)
		}
	}
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
	if _, err := speedOf(t, guest, SpeedRequest{Name: "vps", For: time.Second}); !errors.As(err, &f) || !strings.Contains(f.What, "only members") {
		t.Errorf("a guest: %v", err)
	}
	if _, err := speedOf(t, laptop, SpeedRequest{Name: "vps", For: time.Hour}); !errors.As(err, &f) || f.Exit != ExitUsage {
		t.Errorf("an hour: %v", err)
	}
	if s, err := speedOf(t, laptop, SpeedRequest{Name: "vps", Path: "direct", For: 300 * time.Millisecond}); err != nil || s.Paths[0].Down == 0 {
		t.Errorf("a member: %+v, %v", s, err)
	}
	if _, err := speedOf(t, laptop, SpeedRequest{Name: "laptop"}); !errors.As(err, &f) || f.Exit != ExitUsage {
		t.Errorf("itself: %v", err)
	}
}
