package daemon

import (
	"context"
	"errors"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestATurnstileHasTheOthersWaitAndNoPeerKeepsThemOut(t *testing.T) {
	gate := newTurnstile(3, 2)
	over, end := context.WithCancel(t.Context())
	end()
	enter := func(ctx context.Context, p peer.ID) func() {
		t.Helper()
		leave, err := gate.enter(ctx, p)
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		return leave
	}
	leave := enter(over, "slow")
	enter(over, "slow")
	if _, err := gate.enter(over, "slow"); !errors.Is(err, errBusy) {
		t.Errorf("a third of one peer: %v", err)
	}
	enter(over, "honest")
	if _, err := gate.enter(over, "another"); !errors.Is(err, errBusy) {
		t.Errorf("a fourth: %v", err)
	}
	entered := make(chan func(), 200)
	for range cap(entered) { // a fleet
		go func() {
			leave, err := gate.enter(t.Context(), "another")
			if err != nil {
				t.Error(err)
				leave = func() {}
			}
			entered <- leave
		}()
	}
	leave()
	for range cap(entered) {
		await(t, entered, "the next one's turn")()
	}
	if len(gate.of) != 2 || gate.inside != 2 {
		t.Errorf("%d of %v are inside, want those that never left", gate.inside, gate.of)
	}
}
