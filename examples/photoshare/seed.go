package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"image"
	"image/draw"
	"image/jpeg"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/shardgram/shardgram/examples/photoshare/store"
)

const (
	seedPassword = "photoshare"
	seedPhotos   = 3 // by each person
)

var seedNames = []string{
	"ada", "bela", "chika", "dario", "esme", "farid", "greta", "hugo", "ines", "jonas",
	"kofi", "lena", "mateo", "nora", "oskar", "priya", "quinn", "rosa", "sami", "tove",
}

// seedFollows are the distances, round the list of names, to those whom a
// person follows.
var seedFollows = []int{1, 2, 3, 5, 8, 13}

// A motif is a photograph in testdata, and what people say about it.
type motif struct {
	file     string
	captions []string
}

var motifs = []motif{
	{"chelsea", []string{"Monday.", "She has decided that this is her chair now.", "Waiting for dinner since breakfast.", "Those eyes."}},
	{"coffee", []string{"First one today.", "The good cup.", "Saturday, slowly.", "Third one today. Do not judge."}},
	{"rocket", []string{"Up!", "We felt it in our chests, seven miles away.", "Night launch. Worth the mosquitoes.", "3 … 2 … 1 …"}},
	{"hubble", []string{"Every dot is a galaxy.", "A patch of sky the size of a pinhead at arm's length.", "Hello, neighbours.", "Could not sleep, looked up."}},
	{"brick", []string{"Walls of my street, no. 12", "Texture.", "The old bakery.", "Somebody laid each of these by hand."}},
	{"astronaut", []string{"Met my hero today.", "She flew it, and then she commanded it.", "New poster for the office.", "Orange suits everyone."}},
}

//go:embed testdata/*.jpg
var testdata embed.FS

// seedFolder is the command that seeds a data folder nobody runs.
func seedFolder(ctx context.Context, dir string, out io.Writer) (err error) {
	data, err := openFolder(dir)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "photoshare seeds", dir)
	sys, err := startSystem(ctx, systemConfig{Folder: data, Out: out})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.Close()) }()
	seeded, err := sys.seedOnce(ctx, data, out)
	if err == nil && !seeded {
		err = errors.New("there are people already: seed an empty data folder")
	}
	return err
}

// seedOnce seeds a system without people, and goes on with a seeding that was
// interrupted. It reports whether there was anything to do.
func (s *system) seedOnce(ctx context.Context, data *folder, out io.Writer) (bool, error) {
	if data == nil || !data.seeding() {
		found, err := s.store.People(ctx, 0, 1)
		if err != nil || len(found) > 0 {
			return false, err
		}
	}
	if data != nil {
		if err := data.beginSeeding(); err != nil {
			return true, err
		}
	}
	if err := seed(ctx, s.store, out); err != nil {
		return true, err
	}
	if data != nil {
		return true, data.endSeeding()
	}
	return true, nil
}

// seed puts in people who follow one another and share photographs. What is
// there from an earlier seeding it leaves alone.
func seed(ctx context.Context, s *store.Store, out io.Writer) error {
	total := len(seedNames) * (1 + len(seedFollows) + seedPhotos)
	bar := newProgress(out, "seeding", total)
	defer bar.done(fmt.Sprintf("%d people with %d photos", len(seedNames), len(seedNames)*seedPhotos))

	people := make([]store.User, len(seedNames))
	shared := make([]int, len(seedNames)) // photos that are there
	err := inParallel(ctx, len(seedNames), func(ctx context.Context, i int) error {
		u, err := s.SignUp(ctx, seedNames[i], seedPassword)
		if errors.Is(err, store.ErrNameTaken) {
			u, err = s.LogIn(ctx, seedNames[i], seedPassword)
			if errors.Is(err, store.ErrWrongPassword) {
				return fmt.Errorf("somebody else has the name %s: seed an empty data folder, or start this one with --empty", seedNames[i])
			}
		}
		if err != nil {
			return err
		}
		photos, err := s.Grid(ctx, u.ID, 0, seedPhotos)
		if err != nil {
			return err
		}
		people[i], shared[i] = u, len(photos.Items)
		bar.add(1)
		return nil
	})
	if err != nil {
		return fmt.Errorf("seed people: %w", err)
	}
	err = inParallel(ctx, len(people), func(ctx context.Context, i int) error {
		for _, distance := range seedFollows {
			if err := s.Follow(ctx, people[i].ID, people[(i+distance)%len(people)].ID); err != nil {
				return err
			}
			bar.add(1)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("seed follows: %w", err)
	}
	pictures, err := readPictures()
	if err != nil {
		return err
	}
	err = inParallel(ctx, len(people)*seedPhotos, func(ctx context.Context, i int) error {
		author := i * 7 % len(people)
		if i/len(people) < shared[author] {
			bar.add(1)
			return nil
		}
		which, round := i%len(motifs), i/len(motifs)
		photo, err := s.Upload(ctx, people[author].ID, motifs[which].captions[round%len(motifs[which].captions)], detail(pictures[which], round))
		if err != nil {
			return err
		}
		for fan := range i % 6 {
			if err := s.Like(ctx, people[(i+3*fan+1)%len(people)].ID, photo.ID); err != nil {
				return err
			}
		}
		bar.add(1)
		return nil
	})
	if err != nil {
		return fmt.Errorf("seed photos: %w", err)
	}
	return nil
}

// inParallel calls do for 0 to n-1, a few at a time, until one fails.
func inParallel(ctx context.Context, n int, do func(context.Context, int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(12)
	for i := range n {
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}

func readPictures() ([]image.Image, error) {
	var pictures []image.Image
	for _, m := range motifs {
		f, err := testdata.Open("testdata/" + m.file + ".jpg")
		if err != nil {
			return nil, err
		}
		img, err := jpeg.Decode(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", m.file, err)
		}
		pictures = append(pictures, img)
	}
	return pictures, nil
}

// detail returns, as a JPEG, the whole picture in round 0 and another part of
// it in each further round, so that no two photos are the same.
func detail(img image.Image, round int) []byte {
	b := img.Bounds()
	side := min(b.Dx(), b.Dy())
	part := image.Rectangle{Max: b.Size()}
	if round > 0 {
		zoomed := side * (100 - 5*round) / 100
		part = image.Rect(0, 0, zoomed, zoomed).Add(image.Pt(
			(b.Dx()-zoomed)*(round*37%100)/100,
			(b.Dy()-zoomed)*(round*61%100)/100))
	}
	out := image.NewRGBA(image.Rectangle{Max: part.Size()})
	draw.Draw(out, out.Bounds(), img, b.Min.Add(part.Min), draw.Src)
	var buf bytes.Buffer
	// A buffer takes any image that is not too large, which none of ours is.
	_ = jpeg.Encode(&buf, out, &jpeg.Options{Quality: 90})
	return buf.Bytes()
}
