package blob_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/shardgram/shardgram/examples/photoshare/blob"
)

func ExampleDir() {
	folder, err := os.MkdirTemp("", "photos")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)

	photos, err := blob.OpenDir(folder)
	if err != nil {
		log.Fatal(err)
	}
	defer photos.Close()

	ctx := context.Background()
	if err := photos.Put(ctx, "7f/3a/1234_150.jpg", []byte("a cat")); err != nil {
		log.Fatal(err)
	}
	data, err := photos.Get(ctx, "7f/3a/1234_150.jpg")
	fmt.Println(string(data), err)

	if err := photos.Delete(ctx, "7f/3a/1234_150.jpg"); err != nil {
		log.Fatal(err)
	}
	_, err = photos.Get(ctx, "7f/3a/1234_150.jpg")
	fmt.Println(errors.Is(err, blob.ErrNotFound))
	// Output:
	// a cat <nil>
	// true
}
