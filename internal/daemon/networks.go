package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/identity"
)

// Several networks on one machine: each has a home of its own below the first one's, in
// the folder networks, with its own key, daemon, socket and fwd.toml, so that nothing of
// one can leak into another. What they share is the name that -n takes: the folder's;
// the first home goes by its network's own name.

// networksFolder holds the further homes, below the first one's state and configuration.
const networksFolder = "networks"

// In is the home of the network that is called name on this machine, there or not.
func (h Home) In(name string) Home {
	if h.System {
		h = UserHome() // the machine's own has one network; further ones are the user's
	}
	return Home{
		State:   filepath.Join(h.State, networksFolder, name),
		Config:  filepath.Join(filepath.Dir(h.Config), networksFolder, name, "fwd.toml"),
		Network: name,
	}
}

// A NetworkEntry is one network that this machine is in.
type NetworkEntry struct {
	Name    string `json:"name"` // for -n; empty: another home has that name
	Network string `json:"network"`
	ID      string `json:"id"`
	Machine string `json:"machine"` // this machine's name in it
	Role    string `json:"role"`
	Default bool   `json:"default"` // meant where -n is not given
	Running bool   `json:"running"` // its daemon
	Home    string `json:"home"`
	Error   string `json:"error,omitempty"` // why nothing else is known
}

// Networks lists the networks whose homes are h and below it, the first one first.
func Networks(ctx context.Context, h Home) ([]NetworkEntry, error) {
	further, err := furtherHomes(h)
	if err != nil {
		return nil, err
	}
	list := []NetworkEntry{}
	first := entryOf(ctx, h)
	first.Default = true
	if first.Network != "" {
		first.Name = identity.CleanName(first.Network)
	}
	for _, f := range further {
		e := entryOf(ctx, f)
		if e.Network == "" && e.Error == "" {
			continue // left, or never joined
		}
		e.Name = f.Network
		list = append(list, e)
		if first.Name == e.Name {
			first.Name = ""
		}
	}
	if first.Network != "" || first.Error != "" {
		list = append([]NetworkEntry{first}, list...)
	}
	return list, nil
}

func entryOf(ctx context.Context, h Home) NetworkEntry {
	e := NetworkEntry{Home: h.State}
	if c, err := reach(ctx, h); err == nil {
		c.Close()
		e.Running = true
	}
	roster, err := rosterOf(h)
	switch {
	case h.System && errors.Is(err, fs.ErrPermission):
		e.Error = "the machine's own; root can read it"
	case err != nil:
		e.Error = err.Error()
	case roster != nil:
		e.Network, e.ID = roster.Name, string(roster.Network)
		if self, err := peerOf(h); err == nil {
			entry, _ := roster.Entry(self)
			e.Machine, e.Role = entry.Name, roster.Role(self)
		}
	}
	return e
}

func peerOf(h Home) (peer.ID, error) {
	key, err := identity.LoadKey(h.file("identity.key"))
	if err != nil {
		return "", err
	}
	return peer.IDFromPrivateKey(key)
}

// rosterOf is the network that a home is in, nil if none.
func rosterOf(h Home) (*identity.Sealed, error) {
	book, err := identity.OpenBook(h.file("roster"))
	if err != nil {
		return nil, err
	}
	return book.Current(), nil
}

func furtherHomes(h Home) ([]Home, error) {
	folder := filepath.Dir(h.In("x").State)
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for further networks: %w", err)
	}
	var list []Home
	for _, e := range entries {
		if e.IsDir() && identity.CheckName(e.Name()) == nil {
			list = append(list, h.In(e.Name()))
		}
	}
	return list, nil
}

// FindNetwork is the home of the network that -n calls name. found is false where this
// machine is in no such network; the home is then where it would be.
func FindNetwork(h Home, name string) (home Home, found bool, err error) {
	if err := identity.CheckName(name); err != nil {
		return h, false, usage("see what there is: fwd networks", "-n: %v", err)
	}
	home = h.In(name)
	if _, err := os.Stat(home.State); err == nil {
		return home, true, nil
	}
	if roster, err := rosterOf(h); err == nil && roster != nil && identity.CleanName(roster.Name) == name {
		return h, true, nil
	}
	return home, false, nil
}

// HomeFor is where an invite is to be redeemed: the home that is in its network already,
// else h.
func HomeFor(h Home, code string) Home {
	invite, err := identity.ParseInvite(code)
	if err != nil {
		return h // whose daemon says what is wrong with it
	}
	further, err := furtherHomes(h)
	if err != nil {
		return h
	}
	for _, f := range further {
		if roster, err := rosterOf(f); err == nil && roster != nil && roster.Network == invite.Network() {
			return f
		}
	}
	return h
}

// AddNetwork joins the network of a code as a further one, by join, which is given its
// new home and returns what the network calls itself. The home's name becomes that, or
// the next that is free. Who tries again after a failure does so with the same key, so
// that an invite whose answer was lost is not lost.
func AddNetwork(ctx context.Context, h Home, code string, join func(Home) (network string, err error)) (Home, error) {
	invite, err := identity.ParseInvite(code)
	if err != nil {
		return h, fail(ExitRefused, "invite-damaged", "copy the whole code, from fwd1 to its end; or ask for another: fwd invite", "%v", err)
	}
	sum := sha256.Sum256([]byte(invite.Network()))
	home := h.In(joiningName + hex.EncodeToString(sum[:6]))
	if err := home.prepare(); err != nil {
		return h, err
	}
	network, err := join(home)
	if err != nil {
		return h, errors.Join(err, endDaemon(ctx, home))
	}
	return NameHome(ctx, h, home, network)
}

// joiningName begins the name of a home whose network has not said yet what it is called.
const joiningName = "joining-"

// NameHome gives a further home that has joined, but has no name of its own yet, that of
// its network or the next that is free. It does so to the end even where ctx ends, for it
// is in the network by then. Other homes stay as they are.
func NameHome(ctx context.Context, first, home Home, network string) (Home, error) {
	if !strings.HasPrefix(home.Network, joiningName) {
		return home, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	// Without the daemon the folder can be moved, and the next command starts one there.
	if err := endDaemon(ctx, home); err != nil {
		return home, fmt.Errorf("end the daemon in %s, to name its folder: %w", home.State, err)
	}
	var taken string
	if roster, err := rosterOf(first); err == nil && roster != nil {
		taken = identity.CleanName(roster.Name)
	}
	name := identity.CleanName(network)
	for n := 2; ; n++ {
		to := first.In(name)
		if name != taken {
			// Rename fails where a folder with something in it is.
			err := os.Rename(home.State, to.State)
			if err == nil {
				return to, nil
			}
			if _, there := os.Stat(to.State); there != nil {
				return home, fmt.Errorf("name the network's folder: %w", err)
			}
		}
		name = identity.CleanName(network) + "-" + strconv.Itoa(n)
	}
}

// endDaemon ends the home's, if one runs.
func endDaemon(ctx context.Context, home Home) error {
	Stop(ctx, home) // none: it may have ended by itself
	return AwaitEnd(ctx, home)
}
