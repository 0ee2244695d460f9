package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"fwd/identity"
)

// What became of the invites that were given out. The codes themselves are known to
// nobody but their holders.

// An InviteEntry is one invite, as its network's owner remembers it.
type InviteEntry struct {
	ID       string    `json:"id"`
	Caps     []string  `json:"capabilities"` // of who joins by it
	Tags     []string  `json:"tags"`
	Replaces string    `json:"replaces"` // the machine whose place it gives away; else empty
	Uses     int       `json:"uses"`
	Used     int       `json:"used"`
	Expires  time.Time `json:"expires"`
	State    string    `json:"state"` // open; ended: used up, cancelled, or with a machine revoked; expired
}

// Makes is what the invite makes of who joins by it.
func (i InviteEntry) Makes() string {
	if i.Replaces != "" {
		return "replaces " + i.Replaces
	}
	return strings.Join(i.Caps, ",")
}

// invites carries out `fwd invite --list`.
func (d *Daemon) invites(ctx context.Context, emit func(Event)) error {
	return d.asOwner(ctx, "invites", InvitesRequest{}, emit, func(owner *identity.Owner) error {
		return emitResult(emit, "invites", d.inviteList(owner))
	})
}

// inviteList has what ends first at the top.
func (d *Daemon) inviteList(owner *identity.Owner) []InviteEntry {
	list, now := []InviteEntry{}, d.now()
	for _, i := range owner.Invites() {
		row := InviteEntry{ID: i.ID, Caps: strings.Split(i.Caps.String(), ","), Tags: append([]string{}, i.Tags...),
			Uses: i.Uses, Used: len(i.Used), Expires: i.Expires, State: "open"}
		if i.Replace != "" {
			row.Replaces = d.nameOf(i.Replace)
		}
		switch {
		case row.Used >= row.Uses:
			row.State = "ended"
		case !now.Before(i.Expires):
			row.State = "expired"
		}
		list = append(list, row)
	}
	slices.SortFunc(list, func(a, b InviteEntry) int {
		return cmp.Or(a.Expires.Compare(b.Expires), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// cleanInvites is another machine's list as it may be shown.
func cleanInvites(raw json.RawMessage) json.RawMessage {
	list, err := identity.ReadList[InviteEntry](raw, identity.MaxInvites)
	if err != nil {
		return nil
	}
	for i := range list {
		e := &list[i]
		e.ID, e.Replaces, e.State = clean(e.ID, 80), clean(e.Replaces, 80), clean(e.State, 80)
		for _, words := range [][]string{e.Caps, e.Tags} {
			for k := range words {
				words[k] = clean(words[k], 80)
			}
		}
	}
	raw, _ = json.Marshal(list) // of strings, numbers and a time that was read just now
	return raw
}

// cancelInvite carries out `fwd invite --cancel`.
func (d *Daemon) cancelInvite(ctx context.Context, req CancelInviteRequest, emit func(Event)) error {
	// The code serves as well; what goes to the owner, and is told, is its ID alone.
	if invite, err := identity.ParseInvite(req.ID); err == nil {
		req.ID = invite.ID()
	} else if !errors.Is(err, identity.ErrNotInvite) {
		return fail(ExitRefused, "invite-damaged", "or by its ID: fwd invite --list", "cancel an invite by its code: %v", err)
	}
	return d.asOwner(ctx, "cancel-invite", req, emit, func(owner *identity.Owner) error {
		roster, err := d.roster()
		if err != nil {
			return err
		}
		switch err := owner.Cancel(req.ID); {
		case errors.Is(err, identity.ErrUnknownName):
			return fail(ExitUnknownName, "unknown-name", "see which there are: fwd invite --list", "no invite %q in the network %q", clean(req.ID, 40), roster.Name)
		case err != nil:
			return err
		}
		d.log.Info("invite cancelled", "invite", req.ID)
		emit(Event{Event: "result", Message: "the invite " + req.ID + " lets nobody in any more"})
		return nil
	})
}
