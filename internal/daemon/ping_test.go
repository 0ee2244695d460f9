package daemon

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/internal/node"
)

// restless is a node whose path changes under so many pings; the next has err, or none.
type restless struct {
	changes, sent int
	err           error
}

func (r *restless) Ping(context.Context, peer.ID) (node.Path, error) {
	time.Sleep(time.Millisecond)
	if r.sent++; r.sent <= r.changes {
		return node.Path{}, fmt.Errorf("ping nas: %w", node.ErrPathChanged)
	}
	return node.Path{Kind: "direct"}, r.err
}

func (r *restless) Connect(ctx context.Context, _ peer.ID) error { return ctx.Err() }

func TestAPingWhosePathChangesIsSentAgain(t *testing.T) {
	twice := &restless{changes: 2}
	if path, err := pong(t.Context(), twice, "nas"); err != nil || twice.sent != 3 || path.Kind != "direct" {
		t.Errorf("%d sent: %+v, %v", twice.sent, path, err)
	}
	silent := &restless{err: errors.New("no answer")}
	if _, err := pong(t.Context(), silent, "nas"); err != silent.err || silent.sent != 1 {
		t.Errorf("%d sent, though the path is the same: %v", silent.sent, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := pong(ctx, &restless{changes: 1 << 30}, "nas"); !errors.Is(err, node.ErrPathChanged) {
		t.Errorf("a path that never settles: %v", err)
	}
}
